package federation

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// maxCost is what a rule may take to evaluate, in steps of CEL: a comparison of two
	// claims takes some five.
	maxCost = 20_000
	// maxNodes bounds the parsed expression.
	maxNodes = 1_000
)

// environment is what rules see. It is made once: rules of all issuers share it.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("subject", cel.StringType),
		cel.Variable("audience", cel.ListType(cel.StringType)),
		cel.ParserRecursionLimit(50),
		cel.ParserExpressionSizeLimit(meta.MaxRuleBytes),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(1_000),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
	)
})

// compile makes a program of a rule's expression.
//
// Errors: meta.ErrInvalid, with the place in the expression.
func compile(when string) (cel.Program, error) {
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	ast, issues := env.Compile(when)
	if issues.Err() != nil {
		return nil, fmt.Errorf("%w: %w", issues.Err(), meta.ErrInvalid)
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("it is a %s, not true or false: compare, as in claims.ref == \"refs/heads/main\": %w", ast.OutputType(), meta.ErrInvalid)
	}
	looks := false
	for _, reference := range ast.NativeRep().ReferenceMap() {
		looks = looks || reference.Name == "claims" || reference.Name == "subject"
	}
	if !looks {
		return nil, fmt.Errorf("it looks neither at claims nor at subject, so it would hold for every token of the issuer: %w", meta.ErrInvalid)
	}
	return env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100), cel.EvalOptions(cel.OptOptimize))
}

// holds evaluates a rule.
//
// Errors: what went wrong; then it does not hold.
func holds(ctx context.Context, program cel.Program, c *Claims) (bool, error) {
	out, _, err := program.ContextEval(ctx, map[string]any{
		"claims": maps.Clone(c.All), "subject": c.Subject, "audience": c.Audience,
	})
	if err != nil {
		return false, err
	}
	return out == types.True, nil
}
