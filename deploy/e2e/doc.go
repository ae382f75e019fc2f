// Package e2e holds the end-to-end tests: the real binary as processes, real clients,
// real faults. `make e2e` runs them, `make e2e-full` adds the large cases.
//
// Start reading at harness_test.go, which starts nodes, and clients_test.go, which
// drives docker, containerd, podman, skopeo, buildah, crane, oras, regctl and curl.
// Each test starts its own nodes on loopback addresses or in network namespaces of
// its own and ends them; nothing is left on the machine. What cannot run because a
// tool or root is missing is skipped with a reason, and fails when CI is set.
package e2e
