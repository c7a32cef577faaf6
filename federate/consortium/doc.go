// Package consortium is what people do with a federation: an engineer sets a
// consortium up and invites hospitals, a data scientist starts runs, a data owner
// approves them, bounds what they may cost and can stop everything at once.
//
// Both sides are folders. The consortium's holds its keys, its policy, the list
// of sites and the runs; Serve works on it, and the commands change it, whether
// or not a server is running:
//
//	c, err := consortium.Create("north", consortium.Settings{Name: "north", URL: "https://fed.example:8443", Policy: consortium.DefaultPolicy()})
//	file, err := c.Invite("lyon", 7*24*time.Hour)
//	err = c.Serve(ctx, consortium.ServeOptions{})
//
// A hospital's folder holds the site's keys, which are made there and never
// leave it, what its data owner allows, a ledger of what was spent and a log of
// everything that left:
//
//	site, err := consortium.Join(ctx, file, "site")
//	err = site.Run(ctx, consortium.RunOptions{Data: set})
//
// Whatever one party takes from another is signed (keys/dsse) and verified under
// a key that the invitation pinned: the list of sites, the jobs, the results, and
// on the way back the site's consent. TLS protects the way; no promise rests on
// it alone.
//
// The package knows nothing of medicine.
package consortium
