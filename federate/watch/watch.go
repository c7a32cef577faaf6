// Package watch fits the guards of a model to images that stay at their hospitals.
//
// Of the guards of package guard, those of the inner layers and of the texture can
// be fitted from sums: guard.Additive says which, and why the others cannot. Here a
// site answers with its sums, and the coordinator goes from step to step with their
// totals, which is all that it sees:
//
//	// at the site
//	answers[federate.TaskGuards] = &watch.Site{Network: network, Images: images, Patients: patients, Seed: 1}
//	// at the coordinator, whose terms allow federate.TaskGuards
//	fitted, err := watch.Fit(ctx, coordinator, links, network, 0)
//	p, err := fitted.PValues(features) // of images of anybody's
//
// What comes of it says of an image how unusual it is beside those of all sites
// together. It is not the statistics file of a package, which holds all guards.
package watch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/train"
)

// Network is a model as guards see it, with the variables of a round.
type Network func(of federate.Subject) (guard.Network, error)

// NetworkOf makes the networks of an engine that trains one, for images like the
// set's: values from 0 to 1.
func NetworkOf(e *federate.Engine, n *train.Network, like *train.Set) Network {
	return func(of federate.Subject) (guard.Network, error) {
		m, err := e.ModelOf(of)
		if err != nil {
			return guard.Network{}, err
		}
		out := guard.Network{Model: m, Input: n.Input, Output: n.Logits, Activation: guard.Softmax, Shape: like.Example()}
		if like.Multi() {
			out.Activation = guard.Sigmoid
		}
		for range like.Channels {
			out.Black, out.White = append(out.Black, 0), append(out.White, 1)
		}
		return out, nil
	}
}

// ImagesOf are a set's images as its network takes them, and whose they are.
func ImagesOf(s *train.Set) (images [][]float32, patients []string) {
	size := 1
	for _, d := range s.Example() {
		size *= int(d)
	}
	for i := range s.Len() {
		image := make([]float32, size)
		s.Fill(image, i)
		images = append(images, image)
		patients = append(patients, s.Person(i))
	}
	return images, patients
}

// Site answers federate.TaskGuards from a hospital's images, which the model was
// not trained on. One half of them, by patient, is fitted to; the other calibrates.
type Site struct {
	Network  Network
	Images   [][]float32
	Patients []string
	Seed     uint64 // of the halves
	Threads  int

	mu                 sync.Mutex
	of                 [sha256.Size]byte // variables that what follows was measured with
	fitted, calibrated *guard.Features
	blank              guard.Network
}

// Answer implements federate.Answerer.
func (s *Site) Answer(ctx context.Context, q federate.Question, about federate.Subject) ([]float64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(err error) ([]float64, error) {
		return nil, fmt.Errorf("watch: answering %s: %w", q.Kind, err)
	}
	if err := s.measure(ctx, about); err != nil {
		return fail(err)
	}
	a, err := guard.NewAdditive(s.blank)
	if err != nil {
		return fail(err)
	}
	if err := a.SetParameters(guard.AdditiveStep(q.Kind), q.Parameters); err != nil {
		return fail(fmt.Errorf("%w: %w", federate.ErrOrder, err))
	}
	if a.Numbers() != q.Numbers {
		return fail(fmt.Errorf("%w: a question of %d numbers, want %d", federate.ErrOrder, q.Numbers, a.Numbers()))
	}
	f := s.fitted
	if a.Step == guard.StepClean {
		f = s.calibrated
	}
	if f.Len() < max(1, q.Least) {
		return make([]float64, q.Numbers), nil
	}
	sums, err := a.Sums(f)
	if err != nil {
		return fail(err)
	}
	return sums, nil
}

// measure takes the features of the site's images by a model, once.
func (s *Site) measure(ctx context.Context, about federate.Subject) error {
	hash := sha256.New()
	for _, part := range [][]float32{about.Variables, about.Own} {
		buffer := make([]byte, 0, 4*len(part))
		for _, v := range part {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
		}
		hash.Write(buffer)
	}
	of := [sha256.Size]byte(hash.Sum(nil))
	if s.fitted != nil && of == s.of {
		return nil
	}
	n, err := s.Network(about)
	if err != nil {
		return err
	}
	if len(s.Images) < 2 {
		return errors.New("the site has not two images to divide")
	}
	first, second := guard.Halves(guard.Examples{Images: s.Images, Patients: s.Patients}, s.Seed)
	take := func(at []int) (*guard.Features, error) {
		images := make([][]float32, len(at))
		for k, i := range at {
			images[k] = s.Images[i]
		}
		return guard.Measure(ctx, n, images, s.Threads)
	}
	fitted, err := take(first)
	if err != nil {
		return err
	}
	calibrated, err := take(second)
	if err != nil {
		return err
	}
	s.of, s.fitted, s.calibrated, s.blank = of, fitted, calibrated, n
	return nil
}

// Fit fits to the images of all sites together, in four questions about the
// coordinator's model. least is as in federate.EvaluationOptions, of half a site's
// images. Errors are as those of federate.Coordinator.Ask.
func Fit(ctx context.Context, c *federate.Coordinator, links []federate.Link, n Network, least int) (*guard.Additive, error) {
	network, err := n(federate.Subject{Variables: c.Weights().Variables})
	if err != nil {
		return nil, err
	}
	a, err := guard.NewAdditive(network)
	if err != nil {
		return nil, err
	}
	for a.Step != guard.StepDone {
		sums, err := c.Ask(ctx, links, federate.Question{Task: federate.TaskGuards, Numbers: a.Numbers(), Least: least, Kind: string(a.Step), Parameters: a.Parameters()})
		if err != nil {
			return nil, fmt.Errorf("watch: fitting guards at their sites: %w", err)
		}
		if err := a.Next(sums.Values); err != nil {
			return nil, fmt.Errorf("watch: fitting guards at their sites: %w", err)
		}
	}
	return a, nil
}
