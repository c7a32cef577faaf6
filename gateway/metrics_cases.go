package gateway

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
)

var (
	casesDesc   = prometheus.NewDesc("vigie_cases", "Cases in each state.", []string{"state"}, nil)
	jobsDesc    = prometheus.NewDesc("vigie_jobs", "Jobs in each state of the queue.", []string{"state"}, nil)
	refusedDesc = prometheus.NewDesc("vigie_deliveries_refused", "Results that a destination refuses as they are and that are tried again seldom.", []string{"destination"}, nil)
	upDesc      = prometheus.NewDesc("vigie_store_up", "1 when the store answered this scrape.", nil, nil)
)

// caseCollector counts cases and jobs in the store at each scrape, so that
// several gateways over one store agree.
type caseCollector struct{ book *Casebook }

// Describe implements prometheus.Collector.
func (c *caseCollector) Describe(out chan<- *prometheus.Desc) {
	out <- casesDesc
	out <- jobsDesc
	out <- refusedDesc
	out <- upDesc
}

// Collect implements prometheus.Collector.
func (c *caseCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var cases map[vigie.State]int64
	var jobs, refused map[string]int64
	err := c.book.store.View(ctx, func(tx *store.Tx) (err error) {
		if cases, err = tx.CountCases(); err != nil {
			return err
		}
		if refused, err = tx.CountDeliveries(store.DeliveryRefused); err != nil {
			return err
		}
		jobs, err = tx.JobCounts()
		return err
	})
	up := 1.0
	if err != nil {
		up = 0
		c.book.logger.Warn("counting cases for a scrape failed", "error", err)
	}
	out <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up)
	if err != nil {
		return
	}
	for _, s := range vigie.States {
		out <- prometheus.MustNewConstMetric(casesDesc, prometheus.GaugeValue, float64(cases[s]), string(s))
	}
	for _, d := range c.book.config.Destinations {
		out <- prometheus.MustNewConstMetric(refusedDesc, prometheus.GaugeValue, float64(refused[d.Name]), d.Name)
	}
	for state, n := range jobs {
		out <- prometheus.MustNewConstMetric(jobsDesc, prometheus.GaugeValue, float64(n), state)
	}
}
