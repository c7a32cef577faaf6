package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/vigie/vigie"
)

var siteName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$`)

var destinationName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// validate finds what is wrong with the settings themselves, without looking
// at the machine; Check looks at the machine.
func (c *Config) validate(origins Origins) Problems {
	v := validator{config: c, origins: origins}
	v.roles()
	v.listeners()
	v.destinations()
	v.numbers()
	return v.problems
}

type validator struct {
	config   *Config
	origins  Origins
	problems Problems
}

func (v *validator) fail(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{v.origins.Of(key), key, fmt.Sprintf(format, args...)})
}

func (v *validator) roles() {
	c := v.config
	if c.Production && c.Development {
		v.fail("development", "production and development are both true: choose one")
	}
	if !siteName.MatchString(c.Site) {
		v.fail("site", "%q is no site name: want a host name such as vigie.hospital.example", c.Site)
	}
	if c.State == "" {
		v.fail("state", "must name a folder")
	}
	if !strings.HasPrefix(c.Store, "sqlite:") && !strings.HasPrefix(c.Store, "postgres://") && !strings.HasPrefix(c.Store, "postgresql://") {
		v.fail("store", "%q is no store: want sqlite:/path/vigie.db or postgres://user@host/database", redactURL(c.Store))
	}
	if c.Production && isRemoteInClear(c.Store) {
		v.fail("store", "production needs TLS to a database on another machine: add sslmode=verify-full to its URL")
	}
	if c.Model == "" {
		// Also with a remote enclave: the package says which studies may be
		// analysed, and its digest is what the enclave must prove to serve.
		v.fail("model", "must name the folder of a model package, such as models/chest-pneumonia-28")
	}
	if s := c.Enclave.ModelServer; s != "" {
		if c.Enclave.URL != "" {
			v.fail("enclave.model_server", "belongs to the enclave that enclave.url names: start that one with vigie enclave --model-server")
		} else {
			v.url("enclave.model_server", s, false)
			v.clientTLS("enclave.tls", c.Enclave.TLS, isPlainURL(s))
		}
	}
	if c.Enclave.URL != "" {
		plain := true
		for _, url := range strings.Fields(c.Enclave.URL) {
			v.url("enclave.url", url, false)
			plain = plain && isPlainURL(url)
		}
		v.clientTLS("enclave.tls", c.Enclave.TLS, plain)
	}
}

func (v *validator) listeners() {
	d, h := v.config.DIMSE, v.config.HTTP
	if d.Listen == "" && h.Listen == "" {
		v.fail("dimse.listen", "neither dimse.listen nor http.listen is set: the gateway would hear nobody")
	}
	v.aeTitle("dimse.ae_title", d.AETitle, true)
	v.listener("dimse", d.Listen, d.Plain, d.TLS, d.Allow)
	v.listener("http", h.Listen, h.Plain, h.TLS, h.Allow)
	for i, p := range d.Allow {
		v.aeTitle(fmt.Sprintf("dimse.allow[%d].ae_title", i), p.AETitle, true)
		if p.May != "" {
			v.fail(fmt.Sprintf("dimse.allow[%d].may", i), "over DIMSE peers send and nothing else: leave it out")
		}
	}
	if u, err := url.Parse(h.URL); err != nil || h.URL != "" && (u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "") {
		v.fail("http.url", "%q is no service address: want https://host/path", redactURL(h.URL))
	}
	for i, p := range h.Allow {
		if p.AETitle != "" {
			v.fail(fmt.Sprintf("http.allow[%d].ae_title", i), "HTTP peers have no AE title: use certificate or subject")
		}
	}
}

func (v *validator) listener(name, listen string, plain bool, tls ServerTLS, allow []PeerConfig) {
	if listen == "" {
		return
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		v.fail(name+".listen", "%q is no address: want host:port, such as 0.0.0.0:2762", listen)
		return
	}
	if plain {
		v.plain(name+".plain", host)
	} else {
		for _, f := range []struct{ key, value string }{{"certificate", tls.Certificate}, {"key", tls.Key}, {"client_ca", tls.ClientCA}} {
			if f.value == "" {
				v.fail(name+".tls."+f.key, "must name a PEM file: %s listens on TLS 1.3 with client certificates", name)
			}
		}
	}
	if len(allow) == 0 && !(plain && name == "http") {
		v.fail(name+".allow", "is empty, so nobody may send: list at least one peer")
	}
	for i, p := range allow {
		key := fmt.Sprintf("%s.allow[%d]", name, i)
		if p.Certificate != "" {
			if _, err := vigie.Digest(p.Certificate).Sum(); err != nil {
				v.fail(key+".certificate", "%q is no digest: want sha256: and 64 lower-case hexadecimal digits", p.Certificate)
			}
		}
		if p.Certificate == "" && p.Subject == "" && !plain {
			v.fail(key, "names no certificate and no subject: an AE title alone proves nothing")
		}
	}
}

// plain refuses a transport without TLS unless it is development on loopback.
func (v *validator) plain(key, host string) {
	if !v.config.Development {
		v.fail(key, "a transport without TLS needs development: true")
	}
	if !isLoopback(host) {
		v.fail(key, "a transport without TLS is only for loopback (127.0.0.1, [::1], localhost), not %s", host)
	}
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func (v *validator) aeTitle(key, title string, required bool) {
	if title == "" && !required {
		return
	}
	// PS3.5 table 6.2-1, VR AE: at most 16 characters, not only spaces, no
	// backslash or control characters.
	if len(title) == 0 || len(title) > 16 || strings.TrimSpace(title) == "" {
		v.fail(key, "%q is no AE title: want 1 to 16 characters", title)
		return
	}
	for _, r := range title {
		if r < ' ' || r > '~' || r == '\\' {
			v.fail(key, "%q is no AE title: want printable ASCII without backslash", title)
			return
		}
	}
}

func (v *validator) destinations() {
	seen := map[string]bool{}
	for i, d := range v.config.Destinations {
		key := fmt.Sprintf("destinations[%d]", i)
		if !destinationName.MatchString(d.Name) {
			v.fail(key+".name", "%q is no destination name: want 1 to 31 of a-z, 0-9 and -", d.Name)
		}
		if seen[d.Name] {
			v.fail(key+".name", "%q is used by another destination", d.Name)
		}
		seen[d.Name] = true
		switch d.Kind {
		case "dimse":
			host, _, err := net.SplitHostPort(d.Address)
			if err != nil {
				v.fail(key+".address", "%q is no address: want host:port", d.Address)
			}
			v.aeTitle(key+".ae_title", d.AETitle, true)
			v.aeTitle(key+".calling_ae_title", d.CallingAETitle, false)
			if d.Plain {
				v.plain(key+".plain", host)
			}
			v.clientTLS(key+".tls", d.TLS, d.Plain)
		case "stow":
			v.url(key+".url", d.URL, d.Plain)
			v.clientTLS(key+".tls", d.TLS, d.Plain)
		default:
			v.fail(key+".kind", "must be dimse or stow")
		}
	}
}

func (v *validator) url(key, text string, plain bool) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		v.fail(key, "%q is no service address: want https://host:port/path", redactURL(text))
		return
	}
	if u.User != nil {
		v.fail(key, "carries a user name or password: use a client certificate")
	}
	if u.Scheme == "http" || plain {
		v.plain(key, u.Hostname())
	}
}

func (v *validator) clientTLS(key string, t ClientTLS, plain bool) {
	if plain {
		return
	}
	for _, f := range []struct{ key, value string }{{"ca", t.CA}, {"certificate", t.Certificate}, {"key", t.Key}} {
		if f.value == "" {
			v.fail(key+"."+f.key, "must name a PEM file: we dial with TLS 1.3 and a client certificate")
		}
	}
}

func (v *validator) numbers() {
	c := v.config
	between := func(key string, n, low, high int64) {
		if n < low || n > high {
			v.fail(key, "%d is out of range: want %d to %d", n, low, high)
		}
	}
	between("limits.associations", int64(c.Limits.Associations), 1, 4096)
	between("limits.diagnose_jobs", int64(c.Limits.DiagnoseJobs), 1, 256)
	between("limits.deliver_jobs", int64(c.Limits.DeliverJobs), 1, 256)
	between("enclave.threads", int64(c.Enclave.Threads), 0, 256)
	if c.Limits.ObjectSize < 1<<20 {
		v.fail("limits.object_size", "%v is too small for any image: want at least 1MiB", c.Limits.ObjectSize)
	}
	between("enclave.guard_memory", int64(c.Enclave.GuardMemory), 0, 1<<20)
	if c.Enclave.GuardBudget < 0 {
		v.fail("enclave.guard_budget", "%v: want 0 or more", c.Enclave.GuardBudget)
	}
	if c.Enclave.Timeout <= 0 {
		v.fail("enclave.timeout", "must be positive")
	}
	if c.Enclave.GiveUpAfter < c.Enclave.Timeout {
		v.fail("enclave.give_up_after", "%v is shorter than one try (enclave.timeout is %v)", c.Enclave.GiveUpAfter, c.Enclave.Timeout)
	}
	if c.Enclave.ExplainBudget < 0 || c.Enclave.ExplainBudget > 0 && c.Enclave.ExplainBudget >= c.Enclave.Timeout {
		v.fail("enclave.explain_budget", "%v leaves nothing of one prediction (enclave.timeout is %v): want less, or 0 for the default", c.Enclave.ExplainBudget, c.Enclave.Timeout)
	}
	if c.Enclave.CertificateBudget < 0 || c.Enclave.CertificateBudget > 0 && c.Enclave.CertificateBudget >= c.Enclave.Timeout {
		v.fail("enclave.certificate_budget", "%v leaves nothing of one prediction (enclave.timeout is %v): want less, or 0 for the default", c.Enclave.CertificateBudget, c.Enclave.Timeout)
	}
	if c.Limits.DeliveryRetry <= 0 {
		v.fail("limits.delivery_retry", "must be positive")
	}
	if !(c.Review.Margin >= 0 && c.Review.Margin <= 0.5) {
		v.fail("review.margin", "%v is out of range: want 0 to 0.5", c.Review.Margin)
	}
}

// isRemoteInClear reports whether a PostgreSQL URL leads to another machine
// without making sure which one it is. What is unset may come from the
// environment, and counts as in clear.
func isRemoteInClear(store string) bool {
	u, err := url.Parse(store)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") {
		return false
	}
	host := u.Query().Get("host") // it overrides the other, and may be a folder
	if host == "" {
		host = u.Hostname()
	}
	return !isLoopback(host) && !strings.HasPrefix(host, "/") && u.Query().Get("sslmode") != "verify-full"
}

// redactURL removes a password from text that may be printed.
func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}
