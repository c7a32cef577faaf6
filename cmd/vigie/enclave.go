package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/model"
)

func newEnclaveCommand() *cobra.Command {
	var (
		folder, listen, observe string
		files, server           certificates.Files
		development, production bool
		drain                   time.Duration
		options                 enclave.Options
	)
	cmd := &cobra.Command{
		Use:   "enclave",
		Short: "Read sealed cases with one model, apart from any identity",
		Long: `The enclave holds one model package and keys that never leave its memory. A
gateway verifies its evidence, seals a de-identified case to its key, and gets a
signed finding back. It keeps no state: run as many copies as needed, each under
its own address (the gateway's setting enclave.url takes several).

Cases arrive over mutual TLS 1.3. With --development and a loopback address,
plain HTTP will do. --observe adds an address where health, readiness and
metrics are served in plain HTTP for probes that hold no certificate.

With --model-server another process computes the answers, on a GPU for instance.
It sees the de-identified images and no evidence covers it: keep it on the same
machine or pod. At the start, and with every explanation, its answers are held
against those of the package's own graph; it must compute in float32.

Each flag may also be set by a variable: --tls-cert by VIGIE_ENCLAVE_TLS_CERT.`,
		Example: `  # on this machine, for development
  vigie enclave --model models/chest-pneumonia-28 --development

  # for a gateway on another machine
  vigie enclave --model /srv/chest --development --listen 10.0.0.5:8443 \
    --tls-cert enclave.pem --tls-key enclave.key --client-ca gateways.pem \
    --observe 127.0.0.1:9443`,
		Args: cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			return setFromEnvironment(cmd.LocalNonPersistentFlags(), "VIGIE_ENCLAVE_")
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case folder == "":
				return errors.New("enclave: --model names no package folder")
			case production:
				return fmt.Errorf("enclave: --production: this build has no attestation provider but development, and %w", attest.ErrDevelopmentEvidence)
			case !development:
				return errors.New("enclave: this build has no attestation provider but development: say --development to accept that nothing about the machine is proven")
			}
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			serve := enclave.ServeOptions{Drain: drain}
			if files != (certificates.Files{}) {
				files.Logger = logger
				if serve.TLS, err = files.Server(enclave.TLSOptions()); err != nil {
					return err
				}
			}
			if server != (certificates.Files{}) {
				server.Logger = logger
				if options.ModelServer.TLS, err = server.Client(""); err != nil {
					return err
				}
			}
			pkg, err := model.Open(folder)
			if err != nil {
				return err
			}
			if serve.Listener, err = net.Listen("tcp", listen); err != nil {
				return fmt.Errorf("enclave: --listen: %w", err)
			}
			defer serve.Listener.Close()
			if observe != "" {
				if serve.Observe, err = net.Listen("tcp", observe); err != nil {
					return fmt.Errorf("enclave: --observe: %w", err)
				}
				defer serve.Observe.Close()
			}
			options.Logger, options.Build = logger, version
			worker, err := enclave.New(pkg, attest.NewDevelopment(logger), options)
			if err != nil {
				return err
			}
			return enclave.Serve(cmd.Context(), worker, serve)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&folder, "model", "m", "", "folder of the model package")
	flags.StringVar(&listen, "listen", "127.0.0.1:8443", "address for cases")
	flags.StringVar(&observe, "observe", "", "further address for /healthz, /readyz and /metrics in plain HTTP")
	flags.StringVar(&files.Certificate, "tls-cert", "", "PEM certificate chain of the enclave")
	flags.StringVar(&files.Key, "tls-key", "", "PEM private key of that certificate")
	flags.StringVar(&files.Authority, "client-ca", "", "PEM certificates that a gateway's certificate must chain to")
	flags.StringVar(&options.ModelServer.URL, "model-server", "", "address of an Open Inference Protocol server (Triton, KServe) that computes the answers: https://host:port, or http:// on loopback; the model has the manifest's name unless the path is /v2/models/NAME or /v2/models/NAME/versions/VERSION")
	flags.StringVar(&server.Certificate, "model-server-cert", "", "PEM certificate chain shown to the model server")
	flags.StringVar(&server.Key, "model-server-key", "", "PEM private key of that certificate")
	flags.StringVar(&server.Authority, "model-server-ca", "", "PEM certificates that the model server's certificate must chain to")
	flags.BoolVar(&development, "development", false, "use development evidence, which proves nothing")
	flags.BoolVar(&production, "production", false, "insist on evidence from attesting hardware")
	flags.IntVar(&options.Threads, "threads", 0, "processor threads of the engine; 0 is two, or one on a single core")
	flags.IntVar(&options.MaxConcurrent, "concurrent", 0, "cases read at once; 0 is as many as the cores allow")
	flags.DurationVar(&options.Timeout, "timeout", enclave.DefaultTimeout, "time for one case, after which it goes to a person")
	flags.DurationVar(&options.ExplainBudget, "explain-budget", 0, "of that, the time for making and testing the map of an answer; what does not fit is labelled as untested, or left out; 0 is 5s, or half of --timeout if that is shorter")
	flags.DurationVar(&options.CertifyBudget, "certificate-budget", 0, "of that, the time for the certificate that a package asks for; a case whose certificate does not fit goes to a person; 0 is 10s, or half of --timeout if that is shorter")
	flags.StringVar(&options.Guarding.Missing, "guards-missing", enclave.GuardsAccept, "what happens to the cases of a model without fitted input guards: accept, or review")
	flags.DurationVar(&options.Guarding.Budget, "guard-budget", enclave.DefaultGuardBudget, "how long the input guards may take over one case, after which it goes to a person")
	flags.IntVar(&options.Guarding.Remember, "guard-memory", 0, "images of which fingerprints are remembered in this process, to notice near copies under another patient; 0 is none")
	flags.DurationVar(&options.RotateEvery, "rotate-every", enclave.DefaultRotateEvery, "life of a sealing key")
	flags.DurationVar(&options.RotateGrace, "rotate-grace", 0, "how long the previous sealing key still opens cases; 0 is one hour, or the key's life if that is shorter")
	flags.DurationVar(&drain, "drain", 0, "at a stop, how long running cases may take to finish; 0 is --timeout")
	cmd.MarkFlagsMutuallyExclusive("development", "production")
	return cmd
}

// setFromEnvironment gives each flag that is not on the command line the value
// of its variable: --tls-cert that of <prefix>TLS_CERT.
func setFromEnvironment(flags *pflag.FlagSet, prefix string) error {
	var problems []error
	flags.VisitAll(func(flag *pflag.Flag) {
		name := prefix + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		if value, set := os.LookupEnv(name); set && !flag.Changed {
			if err := flags.Set(flag.Name, value); err != nil {
				problems = append(problems, fmt.Errorf("environment %s: %w", name, err))
			}
		}
	})
	return errors.Join(problems...)
}
