// Package wire carries a federation's orders between hospitals and the
// consortium's server: Connect RPC over HTTP/2 and mutual TLS 1.3.
//
// A hospital always dials outward. It opens one stream on which the server
// pushes calls, and answers each by a call of its own; nothing is polled. Bulk
// parts, such as weights and masked vectors, do not travel inside messages:
//
//	GET   …/down/DIGEST         from any byte on, for a call that waits at this site
//	HEAD  …/up/CALL/DIGEST      how much of an answer's bulk part has arrived
//	PATCH …/up/CALL/DIGEST      more of it, from that byte on
//
// So an interrupted link goes on at the byte where it was. What arrives is
// spooled to disk and held against its SHA-256 digest before anybody sees it.
//
// At the server:
//
//	server, err := wire.NewServer(wire.Options{Federation: "north", Dir: "spool"})
//	go server.HTTP(tlsConfig).Serve(tls.NewListener(listener, tlsConfig))
//	reply, err := server.Ask(ctx, "lyon", wire.Call{Run: "7", Kind: "evaluate", Body: body})
//	outcome, err := coordinator.Round(ctx, []federate.Link{wire.Link(server, "7", "lyon"), …})
//
// At a site:
//
//	client := &wire.Client{URL: "https://consortium.example:8443", TLS: tlsConfig, Dir: "spool"}
//	err := client.Run(ctx, wire.Orders(site))
//
// A site is who its certificate says: its one URI is
// spiffe://FEDERATION/site/NAME, and it can fetch and answer its own calls
// alone. The package knows nothing of how certificates are made, or of what a
// call means.
package wire
