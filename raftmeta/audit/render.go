package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of what an entry shows. They are part of the log's bytes: change them only
// with a cluster level.
const (
	maxText  = 256 // bytes of a text; of a longer one the beginning, its size and its hash
	maxItems = 16  // of a list; of a longer one the first, their number and their hash
	maxDepth = 12
)

// redacted stands for what is a secret or the hash of one.
const redacted = "redacted"

// Rendered is a record in canonical JSON: an object's fields in the order of the type,
// those with a zero value left out.
type Rendered struct {
	JSON []byte
	// Fields are those of the object, by name; nil when it is no object.
	Fields []Field
	// Repository and Tenant are the first that the record names.
	Repository meta.RepoRef
	Tenant     meta.TenantName
}

// Field is a field and its value in JSON.
type Field struct {
	Name  string
	Value []byte
}

// Render writes v for an entry. Fields are named as in JSON (by tag, else in
// snake_case). Bytes are shown by their number only, and texts in fields whose name
// speaks of a secret, a password or a hash not at all; URLs lose their user part. So a
// record is safe to show unless a secret text has an innocent name, which the test of
// all commands looks for.
func Render(v any) Rendered {
	r := renderer{}
	out := Rendered{}
	rv := reflect.ValueOf(v)
	for rv.Kind() == reflect.Pointer && !rv.IsNil() {
		rv = rv.Elem()
	}
	if rv.Kind() == reflect.Struct && special(rv.Type()) == nil {
		r.dst = append(r.dst, '{')
		for _, f := range fieldsOf(rv.Type()) {
			value := rv.Field(f.index)
			if value.IsZero() {
				continue
			}
			if len(r.dst) > 1 {
				r.dst = append(r.dst, ',')
			}
			r.dst = append(appendText(r.dst, f.name), ':')
			from := len(r.dst)
			r.value(value, f.secret, 1)
			out.Fields = append(out.Fields, Field{f.name, r.dst[from:len(r.dst):len(r.dst)]})
		}
		r.dst = append(r.dst, '}')
	} else {
		r.value(rv, false, 0)
	}
	out.JSON, out.Repository, out.Tenant = r.dst, r.repo, r.tenant
	if out.Tenant == "" {
		out.Tenant = r.repo.Tenant
	}
	return out
}

// Differ returns the fields of before that after does not have or has otherwise, and
// the other way round, as JSON objects.
func Differ(before, after Rendered) (was, is []byte) {
	return without(before.Fields, after.Fields), without(after.Fields, before.Fields)
}

func without(fields, others []Field) []byte {
	dst := []byte{'{'}
	for _, f := range fields {
		if slices.ContainsFunc(others, func(o Field) bool { return o.Name == f.Name && string(o.Value) == string(f.Value) }) {
			continue
		}
		if len(dst) > 1 {
			dst = append(dst, ',')
		}
		dst = append(appendText(dst, f.Name), ':')
		dst = append(dst, f.Value...)
	}
	return append(dst, '}')
}

type field struct {
	name   string
	index  int
	secret bool
}

var plans sync.Map // reflect.Type -> []field

func fieldsOf(t reflect.Type) []field {
	if plan, ok := plans.Load(t); ok {
		return plan.([]field)
	}
	var plan []field
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			name = snake(f.Name)
		}
		plan = append(plan, field{name, i, speaksOfSecrets(f.Name) || speaksOfSecrets(name)})
	}
	plans.Store(t, plan)
	return plan
}

// speaksOfSecrets judges a field by its name.
func speaksOfSecrets(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"secret", "password", "passwd", "hash", "private", "bearer", "cookie"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// snake writes a Go name in lower case with underscores.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

type renderer struct {
	dst    []byte
	repo   meta.RepoRef
	tenant meta.TenantName
}

var (
	typeRepo     = reflect.TypeFor[meta.RepoRef]()
	typeTenant   = reflect.TypeFor[meta.TenantName]()
	typeTime     = reflect.TypeFor[meta.Time]()
	typeCID      = reflect.TypeFor[digest.CID]()
	typeDuration = reflect.TypeFor[time.Duration]()
)

// special returns how a type that is not shown by its kind is, nil for others.
func special(t reflect.Type) func(*renderer, reflect.Value) {
	switch t {
	case typeRepo:
		return func(r *renderer, v reflect.Value) {
			repo := v.Interface().(meta.RepoRef)
			if r.repo == (meta.RepoRef{}) {
				r.repo = repo
			}
			r.text(repo.String())
		}
	case typeTenant:
		return func(r *renderer, v reflect.Value) {
			if r.tenant == "" {
				r.tenant = meta.TenantName(v.String())
			}
			r.text(v.String())
		}
	case typeTime:
		return func(r *renderer, v reflect.Value) { r.dst = appendTime(r.dst, meta.Time(v.Int()).Std()) }
	case typeCID:
		return func(r *renderer, v reflect.Value) { r.text(v.Interface().(digest.CID).String()) }
	case typeDuration:
		return func(r *renderer, v reflect.Value) { r.text(time.Duration(v.Int()).String()) }
	}
	return nil
}

func (r *renderer) text(s string) { r.dst = appendText(r.dst, s) }

func (r *renderer) value(v reflect.Value, secret bool, depth int) {
	if v.IsValid() {
		if f := special(v.Type()); f != nil {
			f(r, v)
			return
		}
	}
	if depth > maxDepth {
		r.text("...")
		return
	}
	switch v.Kind() {
	case reflect.Invalid:
		r.dst = append(r.dst, "null"...)
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			r.dst = append(r.dst, "null"...)
			return
		}
		r.value(v.Elem(), secret, depth+1)
	case reflect.Bool:
		r.dst = strconv.AppendBool(r.dst, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		r.dst = strconv.AppendInt(r.dst, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		r.dst = strconv.AppendUint(r.dst, v.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		r.text(strconv.FormatFloat(v.Float(), 'g', -1, 64))
	case reflect.String:
		if secret {
			r.text(redacted)
			return
		}
		r.text(shortened(withoutUser(v.String())))
	case reflect.Struct:
		r.object(v, secret, depth)
	case reflect.Map:
		r.mapping(v, secret, depth)
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			r.text(fmt.Sprintf("(%d bytes)", v.Len()))
			return
		}
		r.list(v, secret, depth)
	default:
		r.text(redacted) // No record has such a thing.
	}
}

func (r *renderer) object(v reflect.Value, secret bool, depth int) {
	r.dst = append(r.dst, '{')
	begun := false
	for _, f := range fieldsOf(v.Type()) {
		in := v.Field(f.index)
		if in.IsZero() {
			continue
		}
		if begun {
			r.dst = append(r.dst, ',')
		}
		begun = true
		r.dst = append(appendText(r.dst, f.name), ':')
		r.value(in, secret || f.secret, depth+1)
	}
	r.dst = append(r.dst, '}')
}

func (r *renderer) mapping(v reflect.Value, secret bool, depth int) {
	keys := v.MapKeys()
	name := func(k reflect.Value) string {
		if k.Kind() == reflect.String {
			return k.String()
		}
		return fmt.Sprint(k.Interface())
	}
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(name(a), name(b)) })
	show := func(r *renderer, keys []reflect.Value) {
		r.dst = append(r.dst, '{')
		for i, k := range keys {
			if i > 0 {
				r.dst = append(r.dst, ',')
			}
			r.dst = append(appendText(r.dst, shortened(name(k))), ':')
			r.value(v.MapIndex(k), secret || speaksOfSecrets(name(k)), depth+1)
		}
		r.dst = append(r.dst, '}')
	}
	if len(keys) <= maxItems {
		show(r, keys)
		return
	}
	r.many(len(keys), func(r *renderer) { show(r, keys) }, func(r *renderer) { show(r, keys[:maxItems]) })
}

func (r *renderer) list(v reflect.Value, secret bool, depth int) {
	show := func(r *renderer, n int) {
		r.dst = append(r.dst, '[')
		for i := range n {
			if i > 0 {
				r.dst = append(r.dst, ',')
			}
			r.value(v.Index(i), secret, depth+1)
		}
		r.dst = append(r.dst, ']')
	}
	if v.Len() <= maxItems {
		show(r, v.Len())
		return
	}
	r.many(v.Len(), func(r *renderer) { show(r, v.Len()) }, func(r *renderer) { show(r, maxItems) })
}

// many shows what is too much by its beginning, its number and the hash of all of it.
func (r *renderer) many(n int, all, first func(*renderer)) {
	whole := renderer{}
	all(&whole)
	sum := sha256.Sum256(whole.dst)
	r.dst = append(r.dst, `{"count":`...)
	r.dst = strconv.AppendInt(r.dst, int64(n), 10)
	r.dst = append(r.dst, `,"sha256":"`...)
	r.dst = hex.AppendEncode(r.dst, sum[:])
	r.dst = append(r.dst, `","first":`...)
	first(r)
	r.dst = append(r.dst, '}')
}

// shortened returns s, or of a long one the beginning with its size and hash.
func shortened(s string) string {
	if len(s) <= maxText {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	cut := maxText / 2
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%s... (%d bytes, sha256 %x)", s[:cut], len(s), sum)
}

// withoutUser takes the user part, which may hold a password, out of a URL.
func withoutUser(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	authority, _, _ := strings.Cut(rest, "/")
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return s
	}
	return scheme + "://" + redacted + rest[at:]
}
