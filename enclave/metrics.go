package enclave

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vigie/vigie"
)

// metrics counts cases. No label is derived from a case's content except
// reason codes and stage names, which are closed sets.
type metrics struct {
	registry  *prometheus.Registry
	cases     *prometheus.CounterVec   // by outcome
	referrals *prometheus.CounterVec   // by reason code
	maps      *prometheus.CounterVec   // by verdict
	proofs    *prometheus.CounterVec   // by verdict
	stages    *prometheus.HistogramVec // by stage, seconds
	running   prometheus.Gauge
	panics    prometheus.Counter
	rotations prometheus.Counter
}

func newMetrics(about description, options Options) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		cases: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigie_enclave_cases_total",
			Help: "Cases by outcome: analysed, referred (no prediction), refused (did not open), abandoned (the client went away)."}, []string{"outcome"}),
		referrals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigie_enclave_referrals_total",
			Help: "Reasons given for referral to a person, by code."}, []string{"reason"}),
		maps: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigie_enclave_maps_total",
			Help: "Explanations of answers by verdict: passed, failed, untested, none."}, []string{"verdict"}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vigie_enclave_certificates_total",
			Help: "Certificates of answers by verdict: proven, agreed, none, disagreed, failed."}, []string{"verdict"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vigie_enclave_stage_seconds",
			Help: "Time of each stage of a case.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 17)}, []string{"stage"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "vigie_enclave_running_cases",
			Help: "Cases being read now, those past their timeout included."}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "vigie_enclave_panics_total",
			Help: "Panics contained while reading a case."}),
		rotations: prometheus.NewCounter(prometheus.CounterOpts{Name: "vigie_enclave_key_rotations_total",
			Help: "Replacements of the sealing key since start."}),
	}
	slots := prometheus.NewGauge(prometheus.GaugeOpts{Name: "vigie_enclave_slots",
		Help: "Cases that can be read at once."})
	slots.Set(float64(options.MaxConcurrent))
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "vigie_enclave_info", Help: "Always 1; the labels say what is served.",
		ConstLabels: prometheus.Labels{"model": about.name, "version": about.version, "digest": string(about.model), "build": options.Build}})
	info.Set(1)
	m.registry.MustRegister(m.cases, m.referrals, m.maps, m.proofs, m.stages, m.running, m.panics, m.rotations, slots, info)
	for _, verdict := range []vigie.MapVerdict{vigie.MapPassed, vigie.MapFailed, vigie.MapUntested, vigie.MapNone} {
		m.maps.WithLabelValues(string(verdict))
	}
	for _, verdict := range vigie.CertificateVerdicts {
		m.proofs.WithLabelValues(string(verdict))
	}
	for _, outcome := range []string{"analysed", "referred", "refused", "abandoned"} {
		m.cases.WithLabelValues(outcome)
	}
	return m
}

// finding counts a finding that was signed.
func (m *metrics) finding(finding vigie.Finding) {
	outcome := "analysed"
	if len(finding.Predictions) == 0 {
		outcome = "referred"
	}
	m.cases.WithLabelValues(outcome).Inc()
	for _, r := range finding.Referrals {
		m.referrals.WithLabelValues(string(r.Code)).Inc()
	}
	if e := finding.Explanation; e != nil {
		m.maps.WithLabelValues(string(e.Verdict)).Inc()
	}
	if c := finding.Certificate; c != nil {
		m.proofs.WithLabelValues(string(c.Verdict)).Inc()
	}
	for _, stage := range finding.Stages {
		m.stages.WithLabelValues(stage.Name).Observe(stage.Duration.Seconds())
	}
}
