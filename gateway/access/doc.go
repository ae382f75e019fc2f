// Package access is the one gate that every route passes: who calls
// (Gate.Authenticate), and may they (Authorize).
//
// Start at Authorize, a pure function of principal, action and Target (Explain is the
// same with its reason); then Gate, which finds the principal in a request: a token of
// the registry, the admin token or a token of /token as Bearer, as Basic password or raw,
// a node's TLS certificate, or the host on an agent's loopback. What a principal may is
// resolved from the metadata and kept until the access revision moves (caller.go). Tokens of /token are EdDSA JWTs (RFC 7519, RFC
// 8037) of at most 300 s, signed with the node key of a server and verified on
// any node by the roster (docker token specification, distribution
// docs/content/spec/auth/token.md).
//
// The package starts no goroutines.
package access
