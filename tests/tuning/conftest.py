from __future__ import annotations

import copy
import json

import pytest


@pytest.fixture(scope="session")
def bert_model(tmp_path_factory):
    """A small random model whose text tower is one of transformers, as BiomedCLIP's is."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    from skclip._backbones._building import build_module

    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of red blue circle star shape with five points the . ,"
    (folder / "vocab.txt").write_text(words.replace(" ", "\n"), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertConfig(vocab_size=words.count(" ") + 1, **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {**text, "hf_tokenizer_name": str(folder), "context_length": 40, "hf_model_pretrained": False},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(copy.deepcopy(config))
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return f"local-dir:{folder}"
