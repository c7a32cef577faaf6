package gateway

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func TestADeliveryThatIsRefusedForGoodIsShownAndNotLost(t *testing.T) {
	ctx := context.Background()
	config := testConfig(t)
	good, bad := startPACS(t), startPACS(t)
	config.Destinations = []DestinationConfig{good.destination("good"), bad.destination("bad")}
	config.Limits.DeliveryRetry = 20 * time.Millisecond
	bad.refuse.Store(uint32(dimse.SOPClassNotSupported))
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	refused := func() (found []store.Delivery) {
		t.Helper()
		if err := g.store.View(ctx, func(tx *store.Tx) (err error) {
			found, err = tx.Deliveries(id, store.DeliveryRefused)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return found
	}
	eventually(t, "the refusals to be believed", func() bool { return len(refused()) == 2 })
	time.Sleep(10 * config.Limits.DeliveryRetry)
	for _, d := range refused() {
		if d.Attempts != refusalsBelieved {
			t.Errorf("an object was offered %d times, want %d and then a rest", d.Attempts, refusalsBelieved)
		}
	}
	const want = "delivery refused by bad: SOP class not supported (0x0122)"
	c, err := g.Case(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if text := Describe(c); c.State != vigie.Released || strings.Count(text, want) != 1 {
		t.Errorf("the case is shown without %q once:\n%s", want, text)
	}
	found, err := g.Find(ctx, Query{}, "dr.test")
	if err != nil || len(found) != 1 || len(found[0].Refusals) != 1 || RefusalText(found[0].Refusals[0]) != want {
		t.Errorf("the list says %+v, %v", found, err)
	}
	_, body := get(t, "http://"+g.Addresses().HTTP.String()+"/metrics")
	for _, line := range []string{`vigie_deliveries_refused{destination="bad"} 2`, `vigie_deliveries_refused{destination="good"} 0`} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}

	// An hour later somebody has changed the destination's mind.
	bad.refuse.Store(0)
	if err := g.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec("UPDATE deliveries SET updated = updated - $1 WHERE case_id = $2", refusedPause.Microseconds(), string(id))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if c = settled(t, g.Casebook, id, vigie.Delivered); len(c.Refusals) != 0 || len(bad.received()) != 2 {
		t.Errorf("at last: %v, %d objects arrived", c.Refusals, len(bad.received()))
	}
	mustVerify(t, g.Casebook)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(g.log.String(), "a delivery is refused"); n != 1 {
		t.Errorf("the log says %d times that a delivery is refused, want once an hour", n)
	}
}

func TestAnHTTPStatusAboutTheObjectsIsARefusalAndOneAboutTheServiceIsNot(t *testing.T) {
	for code, want := range map[int]bool{
		http.StatusUnsupportedMediaType: true, http.StatusBadRequest: true, http.StatusForbidden: false, http.StatusNotFound: false, http.StatusBadGateway: false,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(code)
		}))
		to, err := newDestination(DestinationConfig{Name: "web", Kind: "stow", URL: server.URL, Plain: true}, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewOutgoing(chest(t, 1, phantom.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		refusals := 0
		err = to.send(context.Background(), []Outgoing{o}, func(_ int, err error) {
			if outcomeLabel(err) == "refused" {
				refusals++
			}
		})
		if (refusals == 1) != want || (err == nil) != want {
			t.Errorf("%d: %d refusals and %v, want it refused: %v", code, refusals, err, want)
		}
		server.Close()
	}
}
