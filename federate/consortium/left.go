package consortium

// Left is an entry of a site's log of everything that left the building.
type Left struct {
	Kind string `json:"kind"` // what was answered
	Run  string `json:"run"`
	// Round and Step are of an order's answer.
	Round uint64 `json:"round,omitempty"` // number of the attempt
	Step  string `json:"step,omitempty"`
	Bytes int64  `json:"bytes"`
	SHA   Digest `json:"sha256"` // of the answer
	// Bulk is what travelled beside the answer: the masked update.
	Bulk    int64   `json:"bulk_bytes,omitempty"`
	BulkSHA *Digest `json:"bulk_sha256,omitempty"`

	// Failure is the text that left instead, of an order that was not followed.
	Failure string `json:"failure,omitempty"`
}

const leftName = "log of what left"
