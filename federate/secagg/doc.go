// Package secagg adds vectors of many sites so that nobody learns more than the
// sum: secure aggregation after Bonawitz et al., "Practical Secure Aggregation
// for Privacy-Preserving Machine Learning" (CCS 2017), in the variant of its
// section 6.2 whose server may lie.
//
// Every pair of sites agrees on a mask that one adds and the other subtracts,
// and every site adds one more of its own. In the sum of all, the masks of pairs
// vanish. When a site is lost on the way, those that remain help to take out the
// masks that it left behind; the share of each in its secrets is useless by
// itself, and below the threshold all shares together are.
//
// A round goes through these steps; the coordinator carries messages between
// sites and may lose, reorder or forge them:
//
//	keys      each site signs two fresh public keys
//	shares    each site splits its two secrets among all, verifiably, and seals a share to each
//	accept    each site says which shares were good; who dealt badly leaves before anything is masked
//	masked    each site sends its vector, masked for the sites that remain
//	confirm   each site signs who survived, the digest of the masked sum, and a checksum of its vector
//	reveal    given enough equal signatures, each site reveals for every survivor one kind of
//	          share, for every lost site the other, and never both kinds for one site
//
// Site is a site's half, Coordinator the other. Both are machines without
// input or output: whoever drives them carries the messages, keeps the
// deadlines and writes the state to disk before a message leaves:
//
//	site, err := secagg.NewSite(round, "lyon", key, rand.Reader)
//	send(site.Keys())
//	parcels, err := site.Share(roster)       // of the coordinator
//	acceptance, err := site.Accept(received)
//	signed, err := site.Mask(ctx, partners, vector) // in place: this leaves the hospital
//	confirmation, err := site.Confirm(ctx, survivors, sum, vector)
//	reveal, err := site.Reveal(confirmations)
//
// # What it promises
//
// With n sites whose keys entered the round, a sum is opened by t > 2n/3 of them
// (and never fewer than the round's Minimum; see Round.Threshold). If fewer than
// n/3 of the sites work for a lying server, all that these together see of an
// honest site is a sum over at least t sites, or nothing. A server that shows
// different survivors to different sites cannot collect t signatures for two
// sets: any two groups of t sites have more than n/3 in common, one of them
// honest, and an honest site signs one set.
//
// A site that deals bad shares is found before anything is masked: every share is
// held against a commitment (Feldman 1987), and who complains opens the bad
// parcel, and nothing else, for everybody. One that complains without cause, or
// reveals a wrong share, is found as surely. None of this costs the round, if
// enough others remain.
//
// The coordinator commits to the masked sum before it can be opened, and every
// survivor signs the commitment and a checksum of its own vector under it. The
// checksums add up to the sum's (Checksum): who has a round's messages and its
// masked sum can verify without any vector that the sum is of these vectors and
// no others, and open it. What a vector was masked with is erased at the site when
// the round ends.
//
// It does not hide the sum, nor judge what sites put in: a sum of few sites, or
// a vector made to be large, needs differential privacy and robust rules
// outside of this package.
//
// # Deviations from the paper
//
// Keys are elements of ristretto255 (RFC 9496) and not of X25519: a site's public
// mask key is at the same time the first Feldman commitment of the sharing of
// its secret, so a dealer cannot share anything else than what its public key
// stands for; and a site that was dealt badly can prove it. The signatures of the
// consistency round cover the partners and the masked sum too, not only the
// survivors.
package secagg
