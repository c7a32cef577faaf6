package dp_test

import (
	"fmt"

	"github.com/vigie/vigie/dp"
)

// One step of a private sum, as DP-SGD takes thousands: plan, charge, draw, add
// noise. Only what Perturb wrote may leave.
func Example() {
	values := []float64{0.3, 0.9, 0.1, 0.7, 0.5} // of five records, each clipped to 1
	plan, err := dp.Plan{Epsilon: 2, Delta: 1e-3, Run: dp.Run{Rate: 0.5, Steps: 1}}.Solve(dp.PLD{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ledger := dp.NewLedger("sha256 of the records", len(values))
	if err := ledger.Charge(plan.Run); err != nil {
		fmt.Println(err)
		return
	}
	batch, err := dp.NewSampler().Draw(len(values), plan.Run.Rate)
	if err != nil {
		fmt.Println(err)
		return
	}
	sum := make([]float64, 1)
	for _, i := range batch {
		sum[0] += values[i]
	}
	released := make([]float32, 1)
	if err := dp.NewGaussian().Perturb(released, sum, plan.Run.Sigma*1, 1); err != nil {
		fmt.Println(err)
		return
	}
	spent, err := ledger.Epsilon(dp.PLD{}, 1e-3)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d step, epsilon at most 2: %v\n", ledger.Steps(), spent <= 2)
	// Output: 1 step, epsilon at most 2: true
}

// Three parties add up one number of each of their records, and none of them, nor
// whoever sees the sum, learns more of a record than epsilon allows as long as two
// of them keep their noise to themselves.
func ExampleSum() {
	const sensitivity = 1 << 20 // a record's number is between 0 and this
	variance, err := dp.ShareFor(2, sensitivity, 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	noise, err := dp.NewDiscrete(variance)
	if err != nil {
		fmt.Println(err)
		return
	}
	sum := []uint32{300_000 + 900_000 + 100_000}
	for range 3 {
		if err := noise.Add(sum); err != nil { // each on its own, behind a mask
			fmt.Println(err)
			return
		}
	}
	epsilon, err := dp.Sum{Sensitivity: sensitivity, Variance: variance, Shares: 2, Length: 1}.Epsilon(dp.PLD{}, 1, 1, 1e-5)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("epsilon %.2f\n", epsilon)
	// Output: epsilon 1.99
}
