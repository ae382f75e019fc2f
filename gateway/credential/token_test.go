package credential

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

func TestToken(t *testing.T) {
	text, made := Mint()
	other, another := Mint()
	if text == other || made.ID == another.ID {
		t.Fatal("two tokens are one")
	}
	got, err := Parse(text.Reveal())
	if err != nil || got.ID != made.ID || string(got.Hash) != string(made.Hash) || !trust.CheckToken(text, got.Hash) {
		t.Fatalf("%+v %v, made %+v", got, err, made)
	}
	if len(text.Reveal()) != Length || fmt.Sprint(text) != "***" || !Looks(text.Reveal()) {
		t.Errorf("%d bytes, prints %v", len(text.Reveal()), text)
	}
	if Looks(string(trust.NewAdminToken())) {
		t.Error("the administrator's first token looks like one of ours")
	}
}

func TestHide(t *testing.T) {
	text, token := Mint()
	hidden := "shoal_" + token.ID + "_***"
	for in, want := range map[string]string{
		"/-/user/token/" + text.Reveal():                  hidden,
		text.Reveal() + "/" + text.Reveal() + "?x=shoal_": hidden + "/" + hidden + "?x=shoal_",
		text.Reveal()[:50] + "!":                          "shoal_" + token.ID + "_***!",
		"shoal_status":                                    "shoal_status", "": "", "shoal_" + token.ID: "shoal_" + token.ID,
	} {
		if got := Hide(in); !strings.HasSuffix(got, want) || strings.Contains(got, text.Reveal()[30:50]) {
			t.Errorf("%q is %q", in, got)
		}
	}
}

// Whatever single character is changed, left out or added, it is no token.
func TestMistypedToken(t *testing.T) {
	minted, _ := Mint()
	text := minted.Reveal()
	refused := func(text string) {
		t.Helper()
		if _, err := Parse(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s is taken: %v", text, err)
		} else if strings.Contains(err.Error(), text[len(text)/2:]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	for i := range text {
		for _, c := range []byte("aZ7_- ") {
			if text[i] != c {
				refused(text[:i] + string(c) + text[i+1:])
			}
		}
		refused(text[:i] + text[i+1:])
		refused(text[:i] + "a" + text[i:])
	}
	refused(strings.ToUpper(text))
	refused(strings.ReplaceAll(text, "_", "-"))
}

func FuzzParse(f *testing.F) {
	text, _ := Mint()
	f.Add(text.Reveal())
	f.Add("shoal_")
	f.Add("shoal_aaaaaaaaaaaaaaaa_" + strings.Repeat("a", 58))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) || token.ID != "" || token.Hash != nil {
				t.Fatalf("%+v %v", token, err)
			}
			return
		}
		if CheckID(token.ID) != nil || len(text) != Length || !strings.HasPrefix(text, "shoal_"+token.ID+"_") {
			t.Fatalf("%q is %+v", text, token)
		}
	})
}

// Who writes the whole token where its id belongs does not read it again in an error.
func TestIDErrorHidesTheSecret(t *testing.T) {
	text, token := Mint()
	err := CheckID(text.Reveal())
	if secret := text.Reveal()[len(prefix)+idLength+1:]; !errors.Is(err, meta.ErrInvalid) || strings.Contains(err.Error(), secret[:8]) {
		t.Errorf("%v", err)
	} else if !strings.Contains(err.Error(), token.ID) {
		t.Errorf("it does not say which token: %v", err)
	}
}

// An administrator's token is never taken for one of these, whatever its letters are: one
// of 64 has an underscore where those have theirs.
func TestTheAdministratorsTokenIsNone(t *testing.T) {
	for range 2000 {
		if text := trust.NewAdminToken().Reveal(); Looks(text) {
			t.Fatalf("%s looks like a token", text[:24])
		}
	}
}
