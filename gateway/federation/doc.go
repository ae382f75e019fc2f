// Package federation says what a token of somebody else's issuer is worth here: CI
// systems and clusters that speak OpenID Connect give each job a signed token, and a
// tenant's rules (meta.Issuer) say what jobs with which claims may do.
//
// Start at Judge.Judge: a signature by a key of the issuer, of an algorithm that only
// the issuer can make, for our audience and still good (keys.go and go-oidc; RFC 7519,
// OpenID Connect Core 3.1.3.7); then the rules, CEL expressions over the claims
// (rules.go). Fetch reads the keys of an issuer (OpenID Connect Discovery 1.0, RFC 7517).
//
// Invariants: nothing here fetches while a token is judged, so an issuer that is down
// stops nobody whose keys are known; a rule that cannot be evaluated holds for nobody; a
// rule costs a bounded number of steps; a token without a rule that is true is refused.
//
// The package starts no goroutines.
package federation
