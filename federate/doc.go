// Package federate trains one model at many hospitals without moving an image.
//
// In a round the coordinator sends the global weights to the sites, each trains
// on its own examples, and only the sum of what they learnt is opened: every
// update is clipped, weighted, written in fixed point and masked by
// federate/secagg before it leaves its site. What the sum means for the global
// weights is up to the algorithm (a row of Algorithms) and, where sites are
// masked in groups, to a rule of federate/robust across the groups.
//
// Coordinator and Site are the two sides. They meet through a Link, one call an
// order: in a simulation it is a function call, between hospitals a stream. So a
// simulation of a thousand virtual sites runs the code that hospitals run:
//
//	site, err := federate.NewSite(federate.SiteOptions{Name: "lyon", Terms: terms, Members: members, Signer: key, Trainer: trainer})
//	coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: terms, Members: members, Model: model})
//	outcome, err := coordinator.Round(ctx, []federate.Link{federate.Direct(site), …})
//
// A site obeys its own Terms, those that its hospital agreed to, and refuses an
// order that does not fit them.
package federate
