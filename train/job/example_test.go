package job_test

import (
	"context"
	"fmt"
	"log"

	"github.com/vigie/vigie/train/job"
)

// Fine-tune an ONNX file on radiographs: all but the last block stay as they
// are, and the head is new.
func Example() {
	o := job.Default()
	o.From = "densenet121.onnx"
	o.Head = "normal,pneumonia"
	o.Freeze = []string{"features.denseblock[123].*"}
	o.Data.Data, o.Data.Labels = "radiographs", "labels.csv"
	o.Out = "mine.onnx"
	report, err := o.Run(context.Background(), job.Progress{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("test AUC %.3f (%.3f to %.3f)\n", report.Test.AUC.Value, report.Test.AUC.Low, report.Test.AUC.High)
}
