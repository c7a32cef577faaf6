package keys

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

// NIST CAVP gcmDecrypt256.rsp / McGrew & Viega test case 16: AES-256, 96-bit IV,
// with additional data. It pins the cipher, its nonce and its tag, which
// random nonces keep a round trip from doing.
func TestSealedValuesAreAES256GCM(t *testing.T) {
	unhex := func(s string) []byte {
		data, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	key := unhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
	aad := unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
	plaintext := unhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
	sealed := unhex("01" + "cafebabefacedbaddecaf888" +
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
		"76fc6ece0f4e1768cddf8853bb2d551b")
	opened, err := Open(key, sealed, aad)
	if err != nil || !bytes.Equal(opened, plaintext) {
		t.Fatalf("%x, %v", opened, err)
	}
}

func TestNoAlterationOfASealedValueGoesUnnoticed(t *testing.T) {
	sealed, err := Seal(testKey, []byte("value"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != len("value")+SealOverhead {
		t.Errorf("%d bytes", len(sealed))
	}
	for i := range len(sealed) * 8 {
		altered := bytes.Clone(sealed)
		altered[i/8] ^= 1 << (i % 8)
		if _, err := Open(testKey, altered, []byte("aad")); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
	for n := range sealed {
		if _, err := Open(testKey, sealed[:n], []byte("aad")); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
	if _, err := Open(testKey, sealed, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without its additional data: %v", err)
	}
	again, err := Seal(testKey, []byte("value"), []byte("aad"))
	if err != nil || bytes.Equal(sealed, again) {
		t.Errorf("the same value sealed twice looks the same (%v)", err)
	}
}

func TestAKeyOfAnotherSizeIsRefused(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33, 64} {
		if _, err := Seal(make([]byte, n), nil, nil); err == nil {
			t.Errorf("Seal took a key of %d bytes", n)
		}
		if _, err := NewWriter(&bytes.Buffer{}, make([]byte, n), nil); err == nil {
			t.Errorf("NewWriter took a key of %d bytes", n)
		}
	}
}
