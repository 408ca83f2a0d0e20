"""torchaudio: recognition, separation and synthesis of speech, with few layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchaudio import models

from sirfp.tracing.functions import FunctionWatch

from .subject import Subject


class WithoutDropout(nn.Module):
    """A model without dropout, for one that drops out in evaluation mode too, so that two runs of it differ."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        with FunctionWatch(steady=True):
            return self.model(*inputs)


def encoder(build: Callable[..., nn.Module]) -> Subject:
    """Wav2Vec2, HuBERT or WavLM with two layers."""
    options = {
        "extractor_mode": "group_norm",
        "extractor_conv_layer_config": [(48, 10, 5), (48, 3, 2), (48, 3, 2)],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 96,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 192,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.0,
        "aux_num_out": 12,
    }
    if build is models.wavlm_model:
        del options["encoder_layer_norm_first"]
        options |= {"encoder_num_buckets": 32, "encoder_max_distance": 64, "encoder_layer_norm_first": False}
    return Subject(build(**options), torch.randn(1, 2000))


def conformer() -> Subject:
    model = models.Conformer(input_dim=48, num_heads=4, ffn_dim=96, num_layers=2, depthwise_conv_kernel_size=7)
    return Subject(
        model, (torch.randn(1, 20, 48), torch.tensor([20])), (torch.randn(2, 20, 48), torch.tensor([20, 18]))
    )


def emformer() -> Subject:
    model = models.Emformer(48, 4, 96, 2, segment_length=4, left_context_length=4, right_context_length=1)
    return Subject(
        model, (torch.randn(1, 21, 48), torch.tensor([20])), (torch.randn(2, 21, 48), torch.tensor([20, 16]))
    )


def tacotron() -> Subject:
    def inputs(count: int) -> tuple[torch.Tensor, ...]:
        length = torch.tensor([8] * count)
        return torch.randint(0, 20, (count, 8)), length, torch.randn(count, 20, 12), torch.tensor([12] * count)

    model = models.Tacotron2(
        n_mels=20, n_symbol=20, symbol_embedding_dim=48, encoder_embedding_dim=48, attention_rnn_dim=48,
        attention_hidden_dim=24, decoder_rnn_dim=48, prenet_dim=24, postnet_embedding_dim=48,
    )  # fmt: skip
    return Subject(WithoutDropout(model), inputs(1), inputs(2))


def wavernn() -> Subject:
    model = models.WaveRNN(
        upsample_scales=[2, 2, 2], n_classes=16, hop_length=8, n_res_block=2, n_rnn=48, n_fc=48, n_hidden=48,
        n_freq=20, n_output=32,
    )  # fmt: skip
    return Subject(model, (torch.randn(1, 1, 8 * 6), torch.randn(1, 1, 20, 10)))


MODELS: dict[str, Callable[[], Subject]] = {
    "Wav2Vec2": lambda: encoder(models.wav2vec2_model),
    "WavLM": lambda: encoder(models.wavlm_model),
    "Conformer": conformer,
    "Emformer": emformer,
    "ConvTasNet": lambda: Subject(
        models.ConvTasNet(
            enc_num_feats=64, msk_num_feats=32, msk_num_hidden_feats=64, msk_num_layers=3, msk_num_stacks=2
        ),
        torch.randn(1, 1, 800),
    ),
    "DeepSpeech": lambda: Subject(models.DeepSpeech(20, n_hidden=96), torch.randn(1, 1, 30, 20)),
    "HDemucs": lambda: Subject(models.hdemucs_low(["a", "b"]), torch.randn(1, 2, 44100)),
    "Tacotron2": tacotron,
    "Wav2Letter": lambda: Subject(models.Wav2Letter(num_features=20, input_type="mfcc"), torch.randn(1, 20, 100)),
    "WaveRNN": wavernn,
}
