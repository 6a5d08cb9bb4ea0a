"""Writes a model of Stable Diffusion 1's small kin in which every number is zero, as a sparse safetensors file:
a gigabyte to its reader, next to nothing on the disk. It paints an image of one colour, which is all a test needs.

    python3 zero_model.py FILE
"""

import json
import struct
import sys
from math import prod

CONTEXT = 768  # a token of the text encoder
TIME = 1280  # the embedding of a step
UNET = 320  # channels of the outermost level of the denoiser
UNET_LEVELS = [1, 2, 4]  # times UNET; the small kin lack the fourth
VAE = 128
VAE_LEVELS = [1, 2, 4, 4]


class Shapes:
    """The tensors' shapes by name. `at` looks deeper into the tree of names; all levels share one table."""

    def __init__(self):
        self.table = {}
        self.prefix = ""

    def at(self, *names):
        inner = Shapes()
        inner.table = self.table
        inner.prefix = self.prefix + "".join(f"{name}." for name in names)
        return inner

    def tensor(self, name, *shape):
        self.table[self.prefix + name] = shape

    def linear(self, into, out, bias=True):
        self.tensor("weight", out, into)
        if bias:
            self.tensor("bias", out)

    def convolution(self, into, out, side):
        self.tensor("weight", out, into, side, side)
        self.tensor("bias", out)

    def norm(self, channels):
        self.tensor("weight", channels)
        self.tensor("bias", channels)


def text_encoder(model):
    model.at("embeddings", "token_embedding").tensor("weight", 49408, CONTEXT)
    model.at("embeddings", "position_embedding").tensor("weight", 77, CONTEXT)
    for number in range(12):
        layer = model.at("encoder", "layers", number)
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"]:
            layer.at("self_attn", name).linear(CONTEXT, CONTEXT)
        layer.at("mlp", "fc1").linear(CONTEXT, 4 * CONTEXT)
        layer.at("mlp", "fc2").linear(4 * CONTEXT, CONTEXT)
        for name in ["layer_norm1", "layer_norm2"]:
            layer.at(name).norm(CONTEXT)
    model.at("final_layer_norm").norm(CONTEXT)


def denoiser_block(block, into, out):
    """One step of a level: convolutions that know the time, then attention to the text."""
    convolve = block.at(0)
    convolve.at("in_layers", 0).norm(into)
    convolve.at("in_layers", 2).convolution(into, out, 3)
    convolve.at("emb_layers", 1).linear(TIME, out)
    convolve.at("out_layers", 0).norm(out)
    convolve.at("out_layers", 3).convolution(out, out, 3)
    if into != out:
        convolve.at("skip_connection").convolution(into, out, 1)

    attend = block.at(1)
    attend.at("norm").norm(out)
    attend.at("proj_in").convolution(out, out, 1)
    attend.at("proj_out").convolution(out, out, 1)
    inner = attend.at("transformer_blocks", 0)
    for name, source in [("attn1", out), ("attn2", CONTEXT)]:
        inner.at(name, "to_q").linear(out, out, bias=False)
        inner.at(name, "to_k").linear(source, out, bias=False)
        inner.at(name, "to_v").linear(source, out, bias=False)
        inner.at(name, "to_out", 0).linear(out, out)
    inner.at("ff", "net", 0, "proj").linear(out, 8 * out)
    inner.at("ff", "net", 2).linear(4 * out, out)
    for name in ["norm1", "norm2", "norm3"]:
        inner.at(name).norm(out)


def denoiser(model):
    model.at("time_embed", 0).linear(UNET, TIME)
    model.at("time_embed", 2).linear(TIME, TIME)
    model.at("input_blocks", 0, 0).convolution(4, UNET, 3)
    levels = [times * UNET for times in UNET_LEVELS]

    # Down: one block a level, then half the size. What each gives is kept for the way up. The small kin lack every
    # other block and leave its number free.
    channels, kept, number = UNET, [UNET], 1
    for level in levels:
        denoiser_block(model.at("input_blocks", number), channels, level)
        channels = level
        kept.append(channels)
        number += 2
        if level != levels[-1]:
            model.at("input_blocks", number, 0, "op").convolution(channels, channels, 3)
            kept.append(channels)
            number += 1

    # Up: two blocks a level, then twice the size, numbered apart; the first doubling stands where an attention would.
    number = 0
    for index, level in enumerate(reversed(levels)):
        for turn in range(2):
            denoiser_block(model.at("output_blocks", number), channels + kept.pop(), level)
            channels = level
            number += 1
        if index < len(levels) - 1:
            place = 1 if number == 2 else 2
            model.at("output_blocks", number, place, "conv").convolution(channels, channels, 3)
            number += 1
    model.at("out", 0).norm(channels)
    model.at("out", 2).convolution(channels, 4, 3)


def image_block(block, into, out):
    block.at("norm1").norm(into)
    block.at("conv1").convolution(into, out, 3)
    block.at("norm2").norm(out)
    block.at("conv2").convolution(out, out, 3)
    if into != out:
        block.at("nin_shortcut").convolution(into, out, 1)


def image_middle(middle, channels):
    image_block(middle.at("block_1"), channels, channels)
    middle.at("attn_1", "norm").norm(channels)
    for name in ["q", "k", "v", "proj_out"]:
        middle.at("attn_1", name).convolution(channels, channels, 1)
    image_block(middle.at("block_2"), channels, channels)


def image_coder(model):
    levels = [times * VAE for times in VAE_LEVELS]
    encoder, decoder = model.at("encoder"), model.at("decoder")

    channels = VAE
    encoder.at("conv_in").convolution(3, channels, 3)
    for number, level in enumerate(levels):
        for turn in range(2):
            image_block(encoder.at("down", number, "block", turn), channels, level)
            channels = level
        if number < len(levels) - 1:
            encoder.at("down", number, "downsample", "conv").convolution(channels, channels, 3)
    image_middle(encoder.at("mid"), channels)
    encoder.at("norm_out").norm(channels)
    encoder.at("conv_out").convolution(channels, 8, 3)
    model.at("quant_conv").convolution(8, 8, 1)

    model.at("post_quant_conv").convolution(4, 4, 1)
    decoder.at("conv_in").convolution(4, channels, 3)
    image_middle(decoder.at("mid"), channels)
    for number, level in reversed(list(enumerate(levels))):
        for turn in range(3):
            image_block(decoder.at("up", number, "block", turn), channels, level)
            channels = level
        if number > 0:
            decoder.at("up", number, "upsample", "conv").convolution(channels, channels, 3)
    decoder.at("norm_out").norm(channels)
    decoder.at("conv_out").convolution(channels, 3, 3)


def write(path):
    shapes = Shapes()
    text_encoder(shapes.at("cond_stage_model", "transformer", "text_model"))
    denoiser(shapes.at("model", "diffusion_model"))
    image_coder(shapes.at("first_stage_model"))
    header, end = {}, 0
    for name, shape in shapes.table.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


if __name__ == "__main__":
    write(sys.argv[1])
