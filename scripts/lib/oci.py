"""Writes OCI image layouts: layers entry by entry, config, manifest, index. Standard library only.

Everything is dated 1970 and written in the order given, so the same calls give the same bytes (zstd: with
the same version of its tool).
"""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

GZIP, ZSTD, PLAIN = "gzip", "zstd", "plain"
_SUFFIX = {GZIP: "+gzip", ZSTD: "+zstd", PLAIN: ""}
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


class Layer:
    """One tar archive in the making. Names are bytes or text, relative to the image's root."""

    def __init__(self, compression=GZIP):
        self.compression = compression
        self._buffer = io.BytesIO()
        # GNU headers carry long and non-UTF-8 names as they are.
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT,
                                 encoding="utf-8", errors="surrogateescape")

    @staticmethod
    def _text(name):
        return os.fsdecode(name).lstrip("/")

    def _add(self, name, kind, mode, owner, data=b"", link="", xattrs=None, mtime=0):
        if xattrs:
            self._pax({f"SCHILY.xattr.{key}": value for key, value in xattrs.items()})
        info = tarfile.TarInfo(self._text(name))
        info.type, info.mode, (info.uid, info.gid) = kind, mode, owner
        info.linkname, info.size, info.mtime = os.fsdecode(link), len(data), mtime
        self._tar.addfile(info, io.BytesIO(data))

    def _pax(self, records):
        """A pax header for the entry that follows; values are bytes, which tarfile itself would not write."""
        body = b""
        for key, value in records.items():
            rest = b" " + key.encode() + b"=" + value + b"\n"
            size = len(rest) + 1
            while size != len(rest) + len(str(size)):
                size = len(rest) + len(str(size))
            body += str(size).encode() + rest
        info = tarfile.TarInfo("PaxHeaders/entry")
        info.type, info.size = tarfile.XHDTYPE, len(body)
        self._raw(info.tobuf(tarfile.USTAR_FORMAT), body)

    def _raw(self, header, body):
        self._buffer.write(header + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE))
        self._tar.offset = self._buffer.tell()

    def folder(self, name, mode=0o755, owner=(0, 0), xattrs=None):
        self._add(name, tarfile.DIRTYPE, mode, owner, xattrs=xattrs)

    def file(self, name, data=b"", mode=0o644, owner=(0, 0), xattrs=None, mtime=0):
        data = data.encode() if isinstance(data, str) else data
        self._add(name, tarfile.REGTYPE, mode, owner, data=data, xattrs=xattrs, mtime=mtime)

    def symlink(self, name, target, owner=(0, 0)):
        self._add(name, tarfile.SYMTYPE, 0o777, owner, link=target)

    def hardlink(self, name, target):
        """To a path of this layer or of one below."""
        self._add(name, tarfile.LNKTYPE, 0o644, (0, 0), link=self._text(target))

    def fifo(self, name, mode=0o644):
        self._add(name, tarfile.FIFOTYPE, mode, (0, 0))

    def whiteout(self, name):
        """Removes what layers below have at this path."""
        folder, _, base = self._text(name).rpartition("/")
        self.file(f"{folder}/.wh.{base}" if folder else f".wh.{base}")

    def opaque(self, name):
        """Hides everything that layers below have in this folder."""
        self.file(f"{self._text(name)}/.wh..wh..opq")

    def sparse_file(self, name, size, pieces, mode=0o644):
        """GNU's old sparse format: `pieces` are (offset, data), at most four, 512-byte aligned, the last one
        up to the end of the file."""
        info = tarfile.TarInfo(self._text(name))
        info.type, info.mode = tarfile.GNUTYPE_SPARSE, mode
        info.size = sum(len(data) for _, data in pieces)
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        table = b"".join(b"%011o\0%011o\0" % (offset, len(data)) for offset, data in pieces)
        header[386:386 + len(table)] = table
        header[483:495] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        self._raw(header, b"".join(data for _, data in pieces))

    def sparse_file_pax(self, name, size, pieces, mode=0o644):
        """GNU's sparse format 1.0: the map of pieces is the beginning of the entry's data."""
        table = "\n".join([str(len(pieces)), *(str(n) for offset, data in pieces for n in (offset, len(data)))]) + "\n"
        head = table.encode() + b"\0" * (-len(table) % 512)
        self._pax({"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.name": os.fsencode(self._text(name)),
                   "GNU.sparse.realsize": str(size).encode()})
        folder, _, base = self._text(name).rpartition("/")
        body = head + b"".join(data for _, data in pieces)
        info = tarfile.TarInfo(f"{folder or '.'}/GNUSparseFile.0/{base}")
        info.mode, info.size = mode, len(body)
        # This format is known by its plain POSIX header.
        self._raw(info.tobuf(tarfile.USTAR_FORMAT), body)

    def finish(self):
        self._tar.close()
        return self._buffer.getvalue()


class Layout:
    """An OCI layout folder with one image (or one index of images) tagged `latest`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data, media_type, **more):
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def json_blob(self, value, media_type, **more):
        return self.blob(json.dumps(value, separators=(",", ":"), sort_keys=True).encode(), media_type, **more)

    def layer(self, tar, compression=GZIP):
        """Stores a tar archive: (descriptor, diff id)."""
        diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()
        if compression == GZIP:
            tar = gzip.compress(tar, compresslevel=6, mtime=0)
        elif compression == ZSTD:
            tar = subprocess.run(["zstd", "-q", "-6", "--single-thread", "-c"], input=tar, stdout=subprocess.PIPE, check=True).stdout
        return self.blob(tar, LAYER_TYPE + _SUFFIX[compression]), diff_id

    def image(self, layers, config, architecture="amd64", os_name="linux", platform=None):
        """An image of `layers` (as `layer` returned them); gives the manifest's descriptor."""
        config = self.json_blob({
            "created": "1970-01-01T00:00:00Z", "architecture": architecture, "os": os_name, "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }, CONFIG_TYPE)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config,
                    "layers": [descriptor for descriptor, _ in layers]}
        more = {"platform": platform or {"architecture": architecture, "os": os_name}}
        return self.json_blob(manifest, MANIFEST_TYPE, **more)

    def index(self, manifests):
        """An index to choose from by platform."""
        return self.json_blob({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}, INDEX_TYPE)

    def tag(self, descriptor):
        descriptor = {key: value for key, value in descriptor.items() if key != "platform"}
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
