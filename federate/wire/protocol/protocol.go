// Package protocol is the generated code of protocol.proto: the messages of
// federate/wire. It is remade by `go generate` with protoc (Debian's
// protobuf-compiler) and the two plugins installed beside it:
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
package protocol

//go:generate protoc --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative --connect-go_opt=package_suffix= protocol.proto
