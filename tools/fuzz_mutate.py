"""Ways to damage a file.

Flipped bits, cuts, splices, hostile sizes, strange JSON. All draws come from one `random.Random`.
"""

import gzip
import io
import json
import struct
import zipfile
import zlib

HOSTILE = [
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
]
WORDS = [
    '',
    '0',
    '-1',
    '1',
    '3',
    '1e308',
    '1e-320',
    '-1e39',
    '1e39',
    'nan',
    'inf',
    '999999999999',
    '0.5.5',
    '1D400',
    'T',
    '.true.',
    '=',
    "'",
    '"',
    '$END',
    '&',
    '/',
    '..',
    '../x',
    '\x00',
    'é',
    '9' * 500,
]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    1e308,
    -1e39,
    10**30,
    float('nan'),
    float('inf'),
    '',
    'x',
    '../x',
    'é\n',
    [],
    [1],
    [[]],
    {},
    {'a': 1},
    [None],
    [1, 'a'],
    '1H',
    [1e9, 1e9, 1e9],
]
NIFTI_FIELDS = [
    (40, 2, 8),
    (68, 2, 1),
    (70, 2, 1),
    (72, 2, 1),
    (76, 4, 8),
    (108, 4, 1),
    (112, 4, 2),
    (123, 1, 1),
    (252, 2, 2),
    (256, 4, 6),
    (280, 4, 12),
    (344, 1, 4),
    (348, 4, 3),
]
NIFTI_MRS = 44  # code of the header extension that holds JSON


def flip(data, rnd, other):
    "A few bits turned"
    for _ in range(rnd.randint(1, 8)):
        data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)


def flip_early(data, rnd, other):
    "A bit turned where headers are"
    data[rnd.randrange(min(len(data), 512))] ^= 1 << rnd.randrange(8)


def set_byte(data, rnd, other):
    "One byte of any value"
    data[rnd.randrange(len(data))] = rnd.choice([0, 1, 0x7F, 0x80, 0xFF, 10, 32])


def hostile_number(data, rnd, other):
    "A whole number of two, four or eight bytes, huge or otherwise odd, mostly where headers are"
    size = rnd.choice([2, 4, 8])
    reach = len(data) if rnd.random() < 0.2 else min(len(data), 600)
    start = rnd.randrange(reach) // 4 * 4
    value = rnd.choice(HOSTILE) % 2 ** (8 * size)
    data[start : start + size] = value.to_bytes(size, rnd.choice(['little', 'big']))


def cut(data, rnd, other):
    "The end is missing"
    del data[rnd.randrange(len(data)) :]


def cut_out(data, rnd, other):
    "A piece is missing"
    start = rnd.randrange(len(data))
    del data[start : start + rnd.choice([1, 4, 16, 100, 1000])]


def twice(data, rnd, other):
    "A piece is there twice"
    start = rnd.randrange(len(data))
    data[start:start] = data[start : start + rnd.choice([1, 4, 16, 100, 1000])]


def blank(data, rnd, other):
    "A piece is overwritten by one value"
    start = rnd.randrange(len(data))
    size = min(rnd.choice([4, 16, 100, 1000]), len(data) - start)
    data[start : start + size] = bytes([rnd.choice([0, 32, 255])]) * size


def splice(data, rnd, other):
    "A piece of another file"
    start, source = rnd.randrange(len(data)), rnd.randrange(max(len(other), 1))
    size = rnd.choice([4, 16, 100, 1000])
    data[start : start + rnd.choice([0, size])] = other[source : source + size]


def word(data, rnd, other):
    "A word of a text becomes another"
    start = rnd.randrange(len(data))
    if rnd.random() < 0.6:
        start = rnd.randrange(min(len(data), 1000))
    edges = b' \n\t,:='
    while start and data[start - 1] not in edges:
        start -= 1
    end = start
    while end < len(data) and data[end] not in edges:
        end += 1
    data[start:end] = rnd.choice(WORDS).encode()


BINARY = [flip, flip_early, set_byte, hostile_number, cut, cut_out, twice, blank, splice]
TEXT = [flip, cut, cut_out, twice, splice, word, word, word, word]


def of_bytes(data, rnd, other, ways=BINARY):
    "Bytes damaged in one to three ways"
    data = bytearray(data)
    for _ in range(rnd.randint(1, 3)):
        if data:
            rnd.choice(ways)(data, rnd, other)
    return bytes(data)


def of_value(value, rnd):
    "A JSON value with one place in it changed; that place is found by walking down from the top"
    if isinstance(value, (dict, list)) and value and rnd.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rnd.choice(keys)
        what = rnd.random()
        if what < 0.1:
            del value[key]
        elif what < 0.15 and isinstance(value, dict):
            value[rnd.choice(WORDS)] = value.pop(key)
        elif what < 0.2 and isinstance(value, list):
            value.append(value[key])
        else:
            value[key] = of_value(value[key], rnd)
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rnd.random() < 0.3:
        return rnd.choice(
            [
                -value,
                value * 1000,
                value * 1e-6,
                int(value) if abs(value) < 1e9 else 0,
                str(value),
                [value],
            ]
        )
    return json.loads(json.dumps(rnd.choice(VALUES)))


def of_json(data, rnd, other):
    "A JSON text: damaged as text, as a value, or nested deeply"
    what = rnd.random()
    if what < 0.25:
        return of_bytes(data, rnd, other, TEXT)
    if what < 0.27:
        return data.replace(rnd.choice([b'[', b'{', b'1']), b'[' * 100_000, 1)
    try:
        value = json.loads(data)
    except ValueError:
        return of_bytes(data, rnd, other, TEXT)
    for _ in range(rnd.randint(1, 2)):
        value = of_value(value, rnd)
    return json.dumps(value).encode()


def of_nifti(data, rnd, other):
    "A NIfTI file: its fields, the JSON of its extension, or its bytes"
    data, what = bytearray(data), rnd.random()
    if what < 0.35 and len(data) > 352:
        start, size, many = rnd.choice(NIFTI_FIELDS)
        start += size * rnd.randrange(many)
        if size == 4 and rnd.random() < 0.6:
            data[start : start + 4] = struct.pack(
                '<f', rnd.choice([0.0, -1.0, 1e-30, 1e30, float('nan'), float('inf'), 352.0, 1e9])
            )
        else:
            data[start : start + size] = (rnd.choice(HOSTILE) % 2 ** (8 * size)).to_bytes(
                size, 'little'
            )
        return bytes(data)
    place = 352
    size, code = struct.unpack_from('<ii', data, place) if len(data) > 360 else (0, 0)
    if what < 0.75 and code == NIFTI_MRS and 8 < size <= len(data) - place:
        return (
            bytes(data[:place])
            + _extension(bytes(data[place + 8 : place + size]).rstrip(b'\0 '), data, rnd, other)
            + bytes(data[place + size :])
        )
    return of_bytes(data, rnd, other)


def _extension(text, data, rnd, other):
    "A damaged JSON extension, padded to a multiple of 16; moves the start of the numbers in `data`"
    new = of_json(text, rnd, other)
    size = (len(new) + 8 + 15) // 16 * 16
    old = struct.unpack_from('<i', data, 352)[0]
    (offset,) = struct.unpack_from('<f', data, 108)
    struct.pack_into('<f', data, 108, offset + size - old)
    return struct.pack('<ii', size, NIFTI_MRS) + new.ljust(size - 8, b'\0')


def of_gzip(data, rnd, other):
    "A gzip file: mostly what is in it, as NIfTI"
    if rnd.random() < 0.15:
        return of_bytes(data, rnd, other)
    return gzip.compress(of_nifti(gzip.decompress(data), rnd, other), 1)


def of_zip(data, rnd, other):
    "A zip file: mostly one of its members"
    if rnd.random() < 0.3:
        return of_bytes(data, rnd, other)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rnd.choice(list(members))
    members[name] = of_bytes(members[name], rnd, other, [*BINARY, word])
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for k, v in members.items():
            archive.writestr(k, v)
    return out.getvalue()


def of_matlab(data, rnd, other):
    "A MATLAB v5 file: mostly what its compressed elements hold"
    if rnd.random() < 0.4 or data[:6] != b'MATLAB':
        return of_bytes(data, rnd, other)
    out, place = data[:128], 128
    while place + 8 <= len(data):
        kind, size = struct.unpack_from('<II', data, place)
        body = data[place + 8 : place + 8 + size]
        if kind == 15 and rnd.random() < 0.5:
            body = zlib.compress(
                of_bytes(
                    zlib.decompress(body),
                    rnd,
                    other,
                    [hostile_number, flip_early, flip, cut, set_byte],
                )
            )
        out, place = out + struct.pack('<II', kind, len(body)) + body, place + 8 + size
    return out


def of_safetensors(data, rnd, other):
    "A safetensors file: its JSON header, the card within, or its bytes"
    if rnd.random() < 0.3:
        return of_bytes(data, rnd, other)
    (size,) = struct.unpack_from('<Q', data)
    head = json.loads(data[8 : 8 + size])
    meta = head.get('__metadata__', {})
    if 'card' in meta and rnd.random() < 0.6:
        meta['card'] = of_json(meta['card'].encode(), rnd, other).decode('utf-8', 'replace')
    else:
        head = of_value(head, rnd)
    new = json.dumps(head).encode()
    return struct.pack('<Q', len(new)) + new + data[8 + size :]


WAYS = {
    'binary': of_bytes,
    'text': lambda data, rnd, other: of_bytes(data, rnd, other, TEXT),
    'json': of_json,
    'nifti': of_nifti,
    'gzip': of_gzip,
    'zip': of_zip,
    'matlab': of_matlab,
    'safetensors': of_safetensors,
}


def damage(data, form, rnd, other):
    """A damaged copy of a file.

    Parameters
    ----------
    data, other
        Bytes of the file, and of another from which pieces may be taken.
    form
        A name of `WAYS`.
    rnd
        A `random.Random`; the only source of chance.
    """
    if not data:
        return b'\0'
    try:
        return WAYS[form](data, rnd, other)
    except Exception:  # a file that is not what its name says has no structure to damage
        return of_bytes(data, rnd, other)
