// Reads a buffer once and keeps nothing: what the card's memory gives to a kernel that only reads.

extern "C" __global__ void read_all(const uint4* data, unsigned long long count, unsigned int* sink) {
    unsigned int seen = 0;
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < count; i += 4 * stride) {
        const uint4 a = data[i], b = data[i + stride], c = data[i + 2 * stride], d = data[i + 3 * stride];
        seen |= (a.x | a.y | a.z | a.w) | (b.x | b.y | b.z | b.w) | (c.x | c.y | c.z | c.w) | (d.x | d.y | d.z | d.w);
    }
    for (; i < count; i += stride) {
        const uint4 a = data[i];
        seen |= a.x | a.y | a.z | a.w;
    }
    // The buffer holds zeros, so nothing is ever written; the compiler cannot know.
    if (seen != 0) *sink = seen;
}
