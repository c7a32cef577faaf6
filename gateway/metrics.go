package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/vigie/vigie"
)

// metrics are the gateway's Prometheus metrics. Labels take their values from
// fixed lists and from configuration only, never from a study: a metric must
// not be able to carry a patient datum.
type metrics struct {
	registry   *prometheus.Registry
	received   *prometheus.CounterVec // protocol, outcome
	bytes      *prometheus.CounterVec // protocol
	refusals   *prometheus.CounterVec // protocol, reason
	stages     *prometheus.HistogramVec
	triage     *prometheus.CounterVec // decision
	reasons    *prometheus.CounterVec // code
	deliveries *prometheus.CounterVec // destination, outcome
	retries    *prometheus.CounterVec // job
}

// knownReasons bounds the label of metrics.reasons: a code from outside the
// vocabulary is counted as "other".
var knownReasons = map[vigie.ReasonCode]bool{
	vigie.ReasonUnreadable: true, vigie.ReasonTransferSyntax: true, vigie.ReasonPixels: true, vigie.ReasonModality: true,
	vigie.ReasonBodyPart: true, vigie.ReasonView: true, vigie.ReasonAge: true, vigie.ReasonBurnedIn: true,
	vigie.ReasonDeidentify: true, vigie.ReasonBorderline: true, vigie.ReasonImplausible: true, vigie.ReasonGuard: true,
	vigie.ReasonEnclave: true, vigie.ReasonNoModel: true, vigie.ReasonPolicy: true, vigie.ReasonInternal: true,
	vigie.ReasonUndecided: true, vigie.ReasonUnsure: true, vigie.ReasonUnstable: true, vigie.ReasonPrior: true, vigie.ReasonCertificate: true,
	ReasonConflict: true, ReasonUnnamed: true, ReasonNoPatient: true,
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "vigie", Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry:   prometheus.NewRegistry(),
		received:   counter("intake_objects_total", "Objects received, by what became of them.", "protocol", "outcome"),
		bytes:      counter("intake_bytes_total", "Bytes of objects received.", "protocol"),
		refusals:   counter("intake_refusals_total", "Objects and peers refused.", "protocol", "reason"),
		triage:     counter("triage_total", "Verdicts of triage.", "decision"),
		reasons:    counter("triage_reasons_total", "Reasons given in verdicts.", "code"),
		deliveries: counter("deliveries_total", "Objects sent to destinations.", "destination", "outcome"),
		retries:    counter("job_retries_total", "Job tries that failed and will be repeated.", "job"),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "vigie", Name: "stage_seconds", Help: "Time that each step of a case took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"stage"}),
	}
	m.registry.MustRegister(m.received, m.bytes, m.refusals, m.triage, m.reasons, m.deliveries, m.retries, m.stages,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// stage records how long a step took, with names from the program only.
func (m *metrics) stage(s vigie.Stage) {
	m.stages.WithLabelValues(s.Name).Observe(s.Duration.Seconds())
}

func (m *metrics) verdict(v vigie.Verdict) {
	m.triage.WithLabelValues(string(v.Decision)).Inc()
	for _, r := range v.Reasons {
		code := string(r.Code)
		if !knownReasons[r.Code] {
			code = "other"
		}
		m.reasons.WithLabelValues(code).Inc()
	}
}

// stopwatch measures the stages of one step one after the other, from last on.
type stopwatch struct {
	last   time.Time
	stages []vigie.Stage
}

// lap ends the stage that ran since the last lap.
func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.stages = append(s.stages, vigie.Stage{Name: name, Duration: now.Sub(s.last)})
	s.last = now
}

// enclaveStages bounds the label for stages that an enclave names.
var enclaveStages = map[string]bool{"decode": true, "guard-in": true, "infer": true, "certify": true, "explain": true, "guard-out": true, "sign": true}

func (m *metrics) enclaveStage(s vigie.Stage) {
	name := s.Name
	if !enclaveStages[name] {
		name = "other"
	}
	m.stage(vigie.Stage{Name: "enclave/" + name, Duration: s.Duration})
}
