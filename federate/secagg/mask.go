package secagg

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
)

// A mask is the key stream of AES-256 in counter mode from block 0 (NIST SP
// 800-38A, section 6.5), read as little-endian numbers of 32 bits. Its key is
// used for one mask of one round and never again.
type mask struct {
	key      [32]byte
	subtract bool
}

// derive makes a key from a secret by HKDF-SHA256 (RFC 5869); context binds it
// to a round and its roster, label and names to its use.
func derive(secret, context []byte, label string, names ...string) [32]byte {
	info := []byte("vigie secagg " + label + " v1\x00")
	for _, name := range names {
		info = appendField(info, []byte(name))
	}
	key, err := hkdf.Key(sha256.New, secret, context, string(info), 32)
	if err != nil {
		panic("secagg: " + err.Error()) // only for lengths that cannot be asked for
	}
	return [32]byte(key)
}

// pairMask is what two sites share; low is the name that comes first. The site
// with that name adds it and the other subtracts it.
func pairMask(shared, context []byte, own, other string) mask {
	low, high := min(own, other), max(own, other)
	return mask{key: derive(shared, context, "pair mask", low, high), subtract: own != low}
}

func selfMask(seed, context []byte, own string) mask {
	return mask{key: derive(seed, context, "self mask", own)}
}

// inverse undoes the mask.
func (m mask) inverse() mask { return mask{m.key, !m.subtract} }

// stride is how many numbers of a vector are masked at a time by all masks: it
// stays in the nearest cache. A multiple of the block size.
const stride = 8192

// apply adds masks to a vector in place, over all processors. An error is the
// context's, and leaves the vector unusable.
func apply(ctx context.Context, vector []uint32, masks []mask) error {
	if len(masks) == 0 {
		return nil
	}
	blocks := make([]cipher.Block, len(masks))
	for i, m := range masks {
		block, err := aes.NewCipher(m.key[:])
		if err != nil {
			return fmt.Errorf("secagg: masking: %w", err)
		}
		blocks[i] = block
	}
	// each worker takes a run of whole strides; counter mode starts anywhere
	strides := (len(vector) + stride - 1) / stride
	workers := min(runtime.GOMAXPROCS(0), strides)
	var wait sync.WaitGroup
	for w := range workers {
		from, to := strides*w/workers*stride, min(strides*(w+1)/workers*stride, len(vector))
		wait.Go(func() {
			stream := make([]byte, 4*stride)
			zeros := make([]byte, 4*stride)
			streams := make([]cipher.Stream, len(masks))
			for i, block := range blocks {
				var counter [aes.BlockSize]byte
				binary.BigEndian.PutUint64(counter[8:], uint64(from)*4/aes.BlockSize)
				streams[i] = cipher.NewCTR(block, counter[:])
			}
			for at := from; at < to && ctx.Err() == nil; at += stride {
				part := vector[at:min(at+stride, to)]
				for i, m := range masks {
					bytes := stream[:4*len(part)]
					streams[i].XORKeyStream(bytes, zeros[:len(bytes)])
					if m.subtract {
						subtractStream(part, bytes)
					} else {
						addStream(part, bytes)
					}
				}
			}
		})
	}
	wait.Wait()
	return ctx.Err()
}

// addStreamGeneric adds little-endian numbers to others, modulo 2³².
func addStreamGeneric(dst []uint32, src []byte) {
	for j := range dst {
		dst[j] += binary.LittleEndian.Uint32(src[4*j:])
	}
}

func subtractStreamGeneric(dst []uint32, src []byte) {
	for j := range dst {
		dst[j] -= binary.LittleEndian.Uint32(src[4*j:])
	}
}
