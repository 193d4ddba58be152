// The kernels: KERNEL(result, name, (arguments)). Read wherever something is wanted of each: declarations and the table
// (kernels.h), its functions (table.cpp), Python's functions (bindings.cpp). `f64`: numbers are double, else float.

// y = W x (+ bias) (then ReLU)
KERNEL(void, spmm,
       (bool f64, Pattern w, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu))
// dvalues[k] = sum_b dy[row(k), b] x[col(k), b]
KERNEL(void, sddmm, (bool f64, Pattern w, Matrix dy, Matrix x, void *dvalues, int64_t batch))
// both products of a backward pass, by the rows of the transposed pattern, in one pass over dy: dx = W^T dy and, in the
// order of that pattern, as `ordered` values are, dvalues as sddmm
KERNEL(void, backward,
       (bool f64, Pattern wt, const void *ordered, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch))
// sparse layers one after another, activations and their gradients of type `s`; `kept` receives what chain_backward
// needs of the layers between (their outputs, or what goes into a curve), unless null
KERNEL(void, chain, (Number s, const std::vector<Layer> &layers, int64_t batch, Strided x, Strided y, void *kept))
// how many numbers those are
KERNEL(int64_t, kept_numbers, (Number s, const std::vector<Layer> &layers, int64_t batch))
// gradients of the layers, and dx unless null, from their input x, the output y of the last one (where it has a ReLU)
// and its gradient dy
KERNEL(void, chain_backward,
       (Number s, const std::vector<Layer> &layers, int64_t batch, Strided x, const void *kept, Strided y, Strided dy,
        Strided dx, const std::vector<Gradients> &gradients))
// out[j, i] = in[i, j]
KERNEL(void, transpose, (bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out))

// y[chosen] = W[chosen] x (+ bias) (then ReLU); other rows of y stay as they are
KERNEL(void, rows_spmm,
       (bool f64, Pattern w, Chosen chosen, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias,
        bool relu))
// dx = W[chosen]^T dz (unless null), dvalues (zero in other rows) and dbias[chosen] (unless null), where dz = dy where
// y > 0 (where y is null: dy); dy holds the `whole` layer's rows or only the chosen ones
KERNEL(void, rows_backward,
       (bool f64, Index index, Chosen chosen, const void *values, Matrix dy, bool whole, Matrix y, Matrix x, Matrix dx,
        void *dvalues, void *dbias, int64_t batch))

// y = scale C x (+ bias) (then ReLU), C of small integers by rows; `scale` and `bias` by row
KERNEL(void, integer_spmm,
       (bool f64, Integers c, int64_t cols, Matrix x, Matrix y, int64_t batch, const void *scale, const void *bias,
        bool relu))

// y = conv(x) (+ bias)
KERNEL(void, conv, (bool f64, const Convolution &c, const void *values, const void *bias, Images x, Images y))
// its gradients; dx, channel-major in memory, and dbias may be null
KERNEL(void, conv_backward,
       (bool f64, const Convolution &c, const void *values, Images x, Images dy, void *dvalues, void *dbias, void *dx))

// of each row of x (rows, cols) the k largest magnitudes but no zeros, ties by lower index; how many they are
KERNEL(int64_t, top, (bool f64, int64_t rows, int64_t cols, int64_t k, Matrix x, Top out))
// backward pass of a dense layer from the k largest of each row of delta (batch, outs), or by one choice for the batch:
// dx = S W, dW = S^T X, db = sums of S; dx, dw and db may be null
KERNEL(void, top_backward,
       (bool f64, bool unified, int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x, Matrix w,
        Matrix dx, Matrix dw, void *db))
// the matrix with its zeros
KERNEL(void, spread, (bool f64, int64_t rows, int64_t cols, Top in, void *out))
// y = A^T B, dense
KERNEL(void, outer, (bool f64, int64_t a_cols, Top a, int64_t b_cols, Top b, Matrix y))

// run a program on x (batch, ins), padded with zeros to its size, and keep the first `outs` numbers
KERNEL(void, sell, (bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided y))
// its gradients: dx (may be null), and one for each step (null where it has none or none is wanted)
KERNEL(void, sell_backward,
       (bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided dy, Strided dx,
        const std::vector<void *> &gradients))

// out[i] = 0 where the i-th random number of `seed` lies in [first, first + threshold), else in[i] * scale
KERNEL(void, dropout,
       (bool f64, int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, double scale, const void *in,
        void *out))

// the normal numbers of a seed
KERNEL(void, normals, (bool f64, int64_t size, uint64_t seed, void *out))
// y = a noisy hard tanh, or hard sigmoid, of x; `kept`, unless null, is what its gradients need beside x and p
KERNEL(void, noisy,
       (bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p, void *y, void *kept))
// dx, and dp summed over each unit, unless null
KERNEL(void, noisy_backward,
       (bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p, const void *kept,
        const void *dy, void *dx, void *dp))
// a step of an LSTM from the gates' pre-activations (samples, 4, hidden) and p (5, hidden), the last of c's function: c
// becomes the new state, `before` what it was
KERNEL(void, noisy_lstm,
       (bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre, const void *p, void *c, void *h,
        void *before))
// its gradients: dc becomes that of `before`, dp is added to, unless null
KERNEL(void, noisy_lstm_backward,
       (bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre, const void *p, const void *before,
        const void *dh, void *dc, void *dpre, void *dp))
// a step of a GRU from the products (samples, 3, hidden) with input and state, p (3, hidden); likewise
KERNEL(void, noisy_gru,
       (bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px, const void *ph, const void *p,
        void *h, void *before))
KERNEL(void, noisy_gru_backward,
       (bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px, const void *ph, const void *p,
        const void *before, void *dh, void *dpx, void *dph, void *dp))

// a network for inference: `numbers` of scratch memory for each image, of which at most `chunk` are taken at a time;
// `work` multiply-adds for each
KERNEL(void, inference,
       (const std::vector<Span> &spans, const std::vector<Operation> &steps, int64_t images, int64_t chunk,
        int64_t numbers, int64_t work))

#undef KERNEL
