// Package credential is what people and machines show to say who they are: tokens
// (token.go), passwords (password.go) and how often a wrong one may be tried
// (throttle.go).
//
// A token is 256 random bits behind an id, and only its sha256 is kept: it needs no
// slow hash. A password is kept as Argon2id (RFC 9106), whose cost is bounded twice:
// by how many are computed at a time, and by how often one source or account may
// fail. Nothing here knows HTTP, records or rights; gateway/login puts it together.
//
// The package starts no goroutines and reads no clock but in Hasher's cache.
package credential
