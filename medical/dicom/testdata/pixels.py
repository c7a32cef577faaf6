"""Decodes the frames of the files named on the command line with pydicom and
numpy and prints, a JSON object a line, the digest of the stored values as
little-endian int32 and, for grayscale, of VOI-transformed values."""
import hashlib, json, sys, warnings
import numpy
import pydicom
from pydicom.pixel_data_handlers.util import apply_modality_lut, apply_voi_lut

warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    try:
        ds = pydicom.dcmread(name, force=True)
        pixels = ds.pixel_array
        frames = int(getattr(ds, "NumberOfFrames", None) or 1)
        stack = pixels if frames > 1 else pixels[None]
        out = {"file": name, "shape": list(stack.shape), "frames": []}
        for frame in stack:
            one = {"values": hashlib.sha256(numpy.ascontiguousarray(numpy.minimum(frame.astype('i8'), 2**31 - 1)).astype("<i4").tobytes()).hexdigest(),
                   "first": [int(v) for v in frame.reshape(-1)[:8]]}
            if int(ds.SamplesPerPixel) == 1 and str(ds.PhotometricInterpretation).startswith("MONO"):
                m = apply_modality_lut(frame, ds)
                if "WindowCenter" in ds or "VOILUTSequence" in ds:
                    v = apply_voi_lut(m, ds, prefer_lut=True).astype(float)
                    one["voi"] = [float(x) for x in v.reshape(-1)[:: max(1, v.size // 500)]]
                one["modality"] = [float(x) for x in m.reshape(-1)[:: max(1, m.size // 500)]]
            out["frames"].append(one)
        print(json.dumps(out))
    except Exception as problem:
        print(json.dumps({"file": name, "error": repr(problem)[:200]}))
