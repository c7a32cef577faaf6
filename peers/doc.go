// Package peers proves that a whole Vigie lives with the systems of a hospital:
// its tests run the real binary as a process of its own, on a throw-away site
// (package demo) with TLS 1.3 and mutual certificates, and let programs that we
// did not write send to it, receive from it and read what it made.
//
//	dcmtk        echoscu and storescu in every syntax that they can propose;
//	             storescp as destination; dsrdump, dcmdump read our results
//	dicom3tools  dciodvfy finds no error in them
//	Orthanc      sends and receives, by C-STORE and by STOW-RS
//	pydicom      its test files, odd ones included, each with the answer and the
//	             reasons it must get (testdata/pydicom.golden); and its reader
//	             lists the identities that must be nowhere on disk or in the log
//	Linux        a full and a read-only file system, the memory of a process
//	PostgreSQL   goes away and comes back
//
// It holds nothing but tests. A peer that is not installed, or a privilege that
// is missing, is a skipped test that says what is then not proven. -short leaves
// out what takes more than a few seconds.
package peers
