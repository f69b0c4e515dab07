/* Pillow's resize of 8-bit pixels, bit for bit, of the pixels that a crop needs and no others.
 *
 * Pillow weighs pixels by integers with 22 fractional bits, sums in 32 bits, rounds and clips to 8, one axis after the
 * other (src/libImaging/Resample.c). Integer sums do not depend on their order, so a vector unit gives the same bits.
 * The weights come from Pillow itself (models/resample.py): no floating-point arithmetic happens here. One row is made
 * after the other, so that what is in use stays in the processor's first cache.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(PORTABLE) /* a test compiles the code for any processor */
#elif defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define NEON 1
#endif

#define BITS 22
#define HALF (1 << (BITS - 1))
#define BLOCK 64 /* bytes of a row that are summed together */

/* One axis: output i is the sum of `taps` inputs from starts[i] on, times weights[i * taps ...]. The inputs from `first`
 * on and before `last` are what any output needs. */
typedef struct {
    Py_ssize_t size, taps, first, last;
    const int32_t *starts, *weights;
} Axis;

static inline uint8_t clip(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* --- Along a row: from pixels that begin with input `base` to axis->size pixels. --- */

typedef void (*Across)(const uint8_t *in, Py_ssize_t base, const Axis *axis, const int32_t *weights, uint8_t *out);

static void across1(const uint8_t *in, Py_ssize_t base, const Axis *axis, const int32_t *weights, uint8_t *out) {
    for (Py_ssize_t x = 0; x < axis->size; x++, weights += axis->taps) {
        const uint8_t *at = in + axis->starts[x] - base;
        int32_t sum = HALF;
        for (Py_ssize_t t = 0; t < axis->taps; t++) {
            sum += at[t] * weights[t];
        }
        out[x] = clip(sum);
    }
}

/* The same of 4-byte pixels. Every weight stands four times, once for each byte. */
static void across4(const uint8_t *in, Py_ssize_t base, const Axis *axis, const int32_t *weights, uint8_t *out) {
    for (Py_ssize_t x = 0; x < axis->size; x++, out += 4) {
        const uint8_t *at = in + 4 * (axis->starts[x] - base);
#ifdef NEON
        int32x4_t sum = vdupq_n_s32(HALF);
        for (Py_ssize_t t = 0; t < axis->taps; t++, at += 4, weights += 4) {
            uint32_t pixel;
            memcpy(&pixel, at, 4);
            const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(pixel)));
            sum = vmlaq_s32(sum, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide))), vld1q_s32(weights));
        }
        const uint16x4_t narrow = vqmovun_s32(vshrq_n_s32(sum, BITS));
        const uint32_t pixel = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(narrow, narrow))), 0);
        memcpy(out, &pixel, 4);
#else
        int32_t sum[4] = {HALF, HALF, HALF, HALF};
        for (Py_ssize_t t = 0; t < axis->taps; t++, at += 4, weights += 4) {
            for (int c = 0; c < 4; c++) {
                sum[c] += at[c] * weights[c];
            }
        }
        for (int c = 0; c < 4; c++) {
            out[c] = clip(sum[c]);
        }
#endif
    }
}

#ifdef X86
/* The sum of one output pixel: two input pixels fill a register. */
__attribute__((target("avx2"))) static inline __m128i pixel_avx2(const uint8_t *at, const int32_t *weights,
                                                                  Py_ssize_t taps) {
    __m256i two = _mm256_setzero_si256();
    Py_ssize_t t = 0;
    for (; t + 2 <= taps; t += 2, at += 8, weights += 8) {
        const __m256i pixels = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
        two = _mm256_add_epi32(two, _mm256_mullo_epi32(pixels, _mm256_loadu_si256((const __m256i *)weights)));
    }
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
    if (t < taps) {
        int32_t last;
        memcpy(&last, at, 4);
        const __m128i pixel = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(last));
        sum = _mm_add_epi32(sum, _mm_mullo_epi32(pixel, _mm_loadu_si128((const __m128i *)weights)));
    }
    return _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), BITS);
}

__attribute__((target("avx2"))) static void across4_avx2(const uint8_t *in, Py_ssize_t base, const Axis *axis,
                                                         const int32_t *weights, uint8_t *out) {
    const Py_ssize_t taps = axis->taps;
    Py_ssize_t x = 0;
    for (; x + 2 <= axis->size; x += 2, weights += 8 * taps, out += 8) {
        const __m128i one = pixel_avx2(in + 4 * (axis->starts[x] - base), weights, taps);
        const __m128i next = pixel_avx2(in + 4 * (axis->starts[x + 1] - base), weights + 4 * taps, taps);
        const __m128i both = _mm_packus_epi32(one, next);
        _mm_storel_epi64((__m128i *)out, _mm_packus_epi16(both, both));
    }
    if (x < axis->size) {
        const __m128i one = pixel_avx2(in + 4 * (axis->starts[x] - base), weights, taps);
        const int32_t last = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packus_epi32(one, one), one));
        memcpy(out, &last, 4);
    }
}
#endif

/* --- Down a column: from `taps` rows to one. --- */

typedef void (*Down)(const uint8_t *const *rows, const int32_t *weights, Py_ssize_t taps, Py_ssize_t width, uint8_t *out);

static void down(const uint8_t *const *rows, const int32_t *weights, Py_ssize_t taps, Py_ssize_t width, uint8_t *out) {
    Py_ssize_t x = 0;
    for (; x + BLOCK <= width; x += BLOCK) {
        int32_t sums[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            sums[i] = HALF;
        }
        for (Py_ssize_t t = 0; t < taps; t++) {
            const uint8_t *row = rows[t] + x;
            for (int i = 0; i < BLOCK; i++) {
                sums[i] += row[i] * weights[t];
            }
        }
        for (int i = 0; i < BLOCK; i++) {
            out[x + i] = clip(sums[i]);
        }
    }
    for (; x < width; x++) {
        int32_t sum = HALF;
        for (Py_ssize_t t = 0; t < taps; t++) {
            sum += rows[t][x] * weights[t];
        }
        out[x] = clip(sum);
    }
}

#ifdef X86
__attribute__((target("avx2"))) static void down_avx2(const uint8_t *const *rows, const int32_t *weights,
                                                      Py_ssize_t taps, Py_ssize_t width, uint8_t *out) {
    const __m256i half = _mm256_set1_epi32(HALF);
    /* Packing works in halves of a register; this puts the eights of bytes back in their order. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    Py_ssize_t x = 0;
    for (; x + 32 <= width; x += 32) {
        __m256i a = half, b = half, c = half, d = half;
        for (Py_ssize_t t = 0; t < taps; t++) {
            const __m128i *row = (const __m128i *)(rows[t] + x);
            const __m256i weight = _mm256_set1_epi32(weights[t]);
            const __m128i low = _mm_loadu_si128(row), high = _mm_loadu_si128(row + 1);
            a = _mm256_add_epi32(a, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(low), weight));
            b = _mm256_add_epi32(b, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(low, 8)), weight));
            c = _mm256_add_epi32(c, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(high), weight));
            d = _mm256_add_epi32(d, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(high, 8)), weight));
        }
        const __m256i ab = _mm256_packus_epi32(_mm256_srai_epi32(a, BITS), _mm256_srai_epi32(b, BITS));
        const __m256i cd = _mm256_packus_epi32(_mm256_srai_epi32(c, BITS), _mm256_srai_epi32(d, BITS));
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
        _mm256_storeu_si256((__m256i *)(out + x), bytes);
    }
    for (; x < width; x++) {
        int32_t sum = HALF;
        for (Py_ssize_t t = 0; t < taps; t++) {
            sum += rows[t][x] * weights[t];
        }
        out[x] = clip(sum);
    }
}
#endif

/* --- Both. --- */

/* What is worked with beside the image: the weights for `across`, and rows on their way. */
typedef struct {
    int32_t *spread;
    const uint8_t **rows;
    uint8_t *ring, *line;
} Room;

/* Fills `out`, packed, from `in`, whose pixels have `step` bytes (4 give 3) and whose rows are `stride` bytes long. */
static void fill(const uint8_t *in, Py_ssize_t stride, int step, int height_first, const Axis *x, const Axis *y,
                 const Room *room, uint8_t *out) {
    Across along = step == 4 ? across4 : across1;
    Down below = down;
#ifdef X86
    if (__builtin_cpu_supports("avx2")) {
        along = step == 4 ? across4_avx2 : across1;
        below = down_avx2;
    }
#endif
    for (Py_ssize_t i = 0; i < step * x->size * x->taps; i++) {
        room->spread[i] = x->weights[i / step];
    }
    const Py_ssize_t width = step * x->size;
    Py_ssize_t next = y->first; /* the row of the source that is to be made narrow next */
    for (Py_ssize_t i = 0; i < y->size; i++) {
        const Py_ssize_t start = y->starts[i];
        const int32_t *weights = y->weights + i * y->taps;
        uint8_t *line = step == 4 ? room->line : out;
        if (height_first) {
            for (Py_ssize_t t = 0; t < y->taps; t++) {
                room->rows[t] = in + (start + t) * stride + step * x->first;
            }
            below(room->rows, weights, y->taps, step * (x->last - x->first), room->ring);
            along(room->ring, x->first, x, room->spread, line);
        } else {
            for (next = next > start ? next : start; next < start + y->taps; next++) {
                along(in + next * stride, 0, x, room->spread, room->ring + next % y->taps * width);
            }
            for (Py_ssize_t t = 0; t < y->taps; t++) {
                room->rows[t] = room->ring + (start + t) % y->taps * width;
            }
            below(room->rows, weights, y->taps, width, line);
        }
        if (step == 4) {
            for (Py_ssize_t c = 0; c + 1 < x->size; c++) {
                memcpy(out + 3 * c, line + 4 * c, 4); /* the next pixel overwrites the fourth byte */
            }
            memcpy(out + 3 * (x->size - 1), line + 4 * (x->size - 1), 3);
        }
        out += (step == 4 ? 3 : 1) * x->size;
    }
}

/* Reads an axis from its two tables; every index in them is within `length` after that, and no start is before the one
 * that precedes it. */
static int read_axis(const Py_buffer *starts, const Py_buffer *weights, Py_ssize_t length, Axis *axis) {
    axis->starts = starts->buf;
    axis->weights = weights->buf;
    axis->size = starts->len / 4;
    axis->taps = axis->size ? weights->len / starts->len : 0;
    if (starts->len % 4 || !axis->taps || weights->len != starts->len * axis->taps) {
        PyErr_SetString(PyExc_ValueError, "an axis has starts, and equally many weights for each of them");
        return -1;
    }
    axis->first = axis->starts[0];
    axis->last = axis->starts[axis->size - 1] + axis->taps;
    for (Py_ssize_t i = 0; i < axis->size; i++) {
        const Py_ssize_t start = axis->starts[i];
        if (start < (i ? axis->starts[i - 1] : 0) || start > length - axis->taps) {
            PyErr_Format(PyExc_ValueError, "output %zd takes %zd inputs from %zd on, of %zd", i, axis->taps, start, length);
            return -1;
        }
    }
    return 0;
}

/* What Pillow hands out of an image in one piece, by the Arrow C data interface
 * (https://arrow.apache.org/docs/format/CDataInterface.html): pixels of 4 bytes are the only child of an array. */
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* The bytes of `source`, a buffer or such an array's capsule; `buffer` is to be released after use. */
static int read_source(PyObject *source, Py_buffer *buffer) {
    if (!PyCapsule_IsValid(source, "arrow_array")) {
        return PyObject_GetBuffer(source, buffer, PyBUF_SIMPLE);
    }
    const struct ArrowArray *pixels = PyCapsule_GetPointer(source, "arrow_array");
    const struct ArrowArray *bytes = pixels->n_children == 1 ? pixels->children[0] : NULL;
    if (!pixels->release || !bytes || bytes->n_buffers != 2 || bytes->offset || pixels->offset ||
        bytes->length != 4 * pixels->length) {
        PyErr_SetString(PyExc_ValueError, "the array is not one of pixels of 4 bytes");
        return -1;
    }
    /* The buffer keeps the capsule, and the capsule the image. */
    return PyBuffer_FillInfo(buffer, source, (void *)bytes->buffers[1], bytes->length, 1, PyBUF_SIMPLE);
}

PyDoc_STRVAR(crop_doc,
             "crop(source, width, height, x_starts, x_weights, y_starts, y_weights, height_first, out)\n--\n\n"
             "Fill `out`, uint8 [rows, columns, 3 or 1], from `source`, uint8 [height, width, 4 or 1] or a capsule of an "
             "Arrow array of such pixels: each output pixel is a weighted sum along x and one along y. The fourth byte "
             "of a pixel is left out.");

static PyObject *crop(PyObject *Py_UNUSED(self), PyObject *args) {
    PyObject *given;
    Py_buffer source = {0}, tables[4], out;
    Py_ssize_t width, height;
    int height_first;
    if (!PyArg_ParseTuple(args, "Onny*y*y*y*pw*", &given, &width, &height, &tables[0], &tables[1], &tables[2],
                          &tables[3], &height_first, &out)) {
        return NULL;
    }
    PyObject *answer = NULL;
    Room room = {NULL, NULL, NULL, NULL};
    Axis x, y;
    if (read_source(given, &source)) {
        goto done;
    }
    if (width < 1 || height < 1 || height > source.len / width ||
        (source.len != width * height && source.len / 4 != width * height) || source.len % (width * height)) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not %zd x %zd pixels of 1 or 4 bytes", source.len, width, height);
        goto done;
    }
    const int step = source.len == width * height ? 1 : 4;
    if (read_axis(&tables[0], &tables[1], width, &x) || read_axis(&tables[2], &tables[3], height, &y)) {
        goto done;
    }
    if (out.len != x.size * y.size * (step == 4 ? 3 : 1)) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not %zd x %zd pixels", out.len, x.size, y.size);
        goto done;
    }
    room.spread = PyMem_RawMalloc(4 * step * x.size * x.taps);
    room.rows = PyMem_RawMalloc(y.taps * sizeof *room.rows);
    room.ring = PyMem_RawMalloc(step * (height_first ? x.last - x.first : x.size * y.taps));
    room.line = PyMem_RawMalloc(step * x.size);
    if (!room.spread || !room.rows || !room.ring || !room.line) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    fill(source.buf, step * width, step, height_first, &x, &y, &room, out.buf);
    Py_END_ALLOW_THREADS
    answer = Py_NewRef(Py_None);
done:
    PyMem_RawFree(room.spread);
    PyMem_RawFree(room.rows);
    PyMem_RawFree(room.ring);
    PyMem_RawFree(room.line);
    PyBuffer_Release(&source);
    for (int i = 0; i < 4; i++) {
        PyBuffer_Release(&tables[i]);
    }
    PyBuffer_Release(&out);
    return answer;
}

static PyMethodDef methods[] = {{"crop", crop, METH_VARARGS, crop_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_resample", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resample(void) { return PyModule_Create(&module); }
