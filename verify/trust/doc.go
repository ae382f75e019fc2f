// Package trust says who a node is and lets any other node check it offline.
//
// A node is its Ed25519 Key: the key's libp2p peer id is its meta.NodeID. A
// cluster is its Authority: a self-signed root that certifies node keys for TLS;
// Root is the public half that every node pins. Credential is a node's present
// certificate, read by the TLS configurations at each handshake, so that renewal
// needs no restart. Three small signed or secret things travel besides: JoinToken
// (how a new node finds and proves the cluster), Grant (a peer's short right to
// one blob) and sealed secrets (the root's key, encrypted to each server). Start
// reading at Key, Authority and ServerTLS.
//
// Invariants: a private key leaves the package only through Private, Libp2p and
// KeyDER; a Secret prints as ***; every check takes the time from its caller or,
// inside TLS, from the clock; nothing asks the network.
//
// Formats: node.key is PKCS #8 (RFC 5958) in PEM; certificates are X.509 v3
// (RFC 5280) with Ed25519 keys (RFC 8410); a node's name is the URI SAN
// shoal://<cluster>/<role>/<region>/<node id>; grants are codec records; secrets
// are sealed in the age v1 format with ssh-ed25519 recipients (age-encryption.org/v1).
// verify/DESIGN.md has the threat table.
//
// The package is a leaf: rooms may import it, it imports only the leaves codec,
// meta and digest. Credential.Run works in its caller's goroutine; nothing else runs.
package trust
