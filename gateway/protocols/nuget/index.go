package nuget

import (
	"fmt"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// resource is one entry of the service index.
type resource struct {
	ID      string `json:"@id"`
	Type    string `json:"@type"`
	Comment string `json:"comment,omitempty"`
}

// index answers the service index (learn.microsoft.com/nuget/api/service-index). Every
// type stands for itself: clients look for the newest that they know.
func (p *Protocol) index(c *protocol.Call) error {
	repo := meta.RepoRef{Tenant: meta.TenantName(c.Params.Get("owner")), Name: c.Params.Get("name")}
	if err := repo.Check(); err != nil {
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	base := linksTo(c.R, repo).base
	registrations := base + "registrations/"
	search := []string{"", "/3.0.0-beta", "/3.0.0-rc", "/3.5.0"}
	resources := []resource{
		{base + "flat/", "PackageBaseAddress/3.0.0", "Package content: versions, .nupkg and .nuspec."},
		{base + "package", "PackagePublish/2.0.0", "Publish, unlist and relist packages."},
	}
	for _, version := range []string{"", "/3.0.0-beta", "/3.0.0-rc"} {
		resources = append(resources, resource{registrations + string(hivePlain) + "/", "RegistrationsBaseUrl" + version, "Package metadata, without SemVer 2.0.0 packages."})
	}
	resources = append(resources,
		resource{registrations + string(hiveGzip) + "/", "RegistrationsBaseUrl/3.4.0", "Package metadata compressed, without SemVer 2.0.0 packages."},
		resource{registrations + string(hiveSemVer2) + "/", "RegistrationsBaseUrl/3.6.0", "Package metadata compressed, with SemVer 2.0.0 packages."},
		resource{registrations + string(hiveSemVer2) + "/", "RegistrationsBaseUrl/Versioned", "Package metadata compressed, with SemVer 2.0.0 packages."},
	)
	for _, version := range search {
		resources = append(resources,
			resource{base + "query", "SearchQueryService" + version, "Search by parts of ids."},
			resource{base + "autocomplete", "SearchAutocompleteService" + version, "Complete ids, list versions."},
		)
	}
	resources = append(resources, resource{base + "vulnerabilities/index.json", "VulnerabilityInfo/6.7.0", "Known vulnerabilities: none are kept here."})
	return writeDocument(c, map[string]any{"version": "3.0.0", "resources": resources})
}

// vulnerabilities answers the index of vulnerability data, of one page without entries:
// clients that audit find nothing, rather than no source to ask.
func (p *Protocol) vulnerabilities(c *protocol.Call) error {
	if err := p.asOf(c); err != nil {
		return err
	}
	return writeDocument(c, []map[string]string{{
		"@name": "base", "@id": linksOf(c).base + "vulnerabilities/base.json", "@updated": "2026-01-01T00:00:00Z", "comment": "none are kept here",
	}})
}

func (p *Protocol) vulnerabilitiesBase(c *protocol.Call) error {
	if err := p.asOf(c); err != nil {
		return err
	}
	return writeDocument(c, struct{}{})
}

// asOf says what an answer is that is of the repository's record alone.
func (p *Protocol) asOf(c *protocol.Call) error {
	_, asOf, err := p.catalog.Repository(c.R.Context(), caller(c), c.Repo)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return nil
}
