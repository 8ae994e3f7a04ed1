"""Attention over a paged KV cache: fast kernels and their readable twins.

`reference` says in plain torch what the others compute; `cpu` is numba. All take element offsets and strides, so one
kernel serves every KV layout:

    element of (layer l, block b, local KV head h, kv, token t, dim d)
      = l x layer_stride + block_offset[b] + head_offset[h] + kv x kv_stride + t x token_stride + d
"""
