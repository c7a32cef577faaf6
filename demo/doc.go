// Package demo is a hospital in a folder: a development certificate authority,
// a gateway with its enclave in the same process, a modality that sends and a
// PACS that receives, all over the real protocols on loopback. `vigie demo`
// shows it to people and the end-to-end tests drive it.
//
//	site, err := demo.NewSite(dir, demo.SiteOptions{Model: "models/chest-pneumonia-28"})
//	if err != nil { … }
//	pacs, err := site.StartPACS(ctx)
//	gateway, err := site.StartGateway(ctx, logger)
//
// Everything in the folder is throw-away. Nothing here is for production: the
// certificates are fresh, short-lived and trusted by nobody else, and the
// enclave's evidence is of the development kind.
package demo
