"""Prints what pydicom reads in each file named on the command line: one JSON
object a line, {"file", "syntax", "elements": {path: [vr, values…]}}."""
import hashlib, json, sys, warnings
import pydicom
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

warnings.simplefilter("ignore")
BINARY = {"OB", "OW", "OF", "OD", "OL", "OV", "UN"}

def text(vr, v):
    if v is None or v == "":
        return ""
    if vr in ("DS", "IS"):
        return getattr(v, "original_string", None) or str(v)
    if vr == "AT":
        return "%08X" % int(v)
    if vr in ("FL", "FD"):
        return "%.9g" % v
    return str(v)

def walk(ds, path, out):
    for e in ds:
        if e.tag.element == 0:
            continue
        key = path + "%08X" % e.tag
        if e.VR == "SQ":
            out[key] = ["SQ", str(len(e.value or []))]
            for i, item in enumerate(e.value or []):
                walk(item, "%s[%d]." % (key, i), out)
        elif isinstance(e.value, bytes) or e.VR in BINARY:
            b = e.value or b""
            out[key] = [e.VR, "%d:%s" % (len(b), hashlib.sha256(b).hexdigest())]
        else:
            v = e.value
            values = list(v) if isinstance(v, (MultiValue, list, tuple)) else ([] if v is None or v == "" else [v])
            out[key] = [e.VR] + [text(e.VR, x) for x in values]

for name in sys.argv[1:]:
    try:
        ds = pydicom.dcmread(name, force=True)
        ds.decode()
        out = {}
        walk(ds, "", out)
        print(json.dumps({"file": name, "syntax": str(getattr(ds.file_meta, "TransferSyntaxUID", "")), "elements": out}))
    except Exception as problem:
        print(json.dumps({"file": name, "error": repr(problem)}))
