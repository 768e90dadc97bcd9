"""Small tokenizers of every common kind, made here. (Not named tokenizers.py: that would hide the package.)

`KINDS` differ in how they make tokens of text; `MODELS` in special tokens and chat template, as the families' own do.
"""

import string
from functools import cache

import stepsal

CORPUS = [
    "First we add the numbers. Then we take the total, and that is 3.14.",
    "The answer is 42! So is it? Yes.",
    "Next: subtract one number from another (twice).",
]
MARKERS = ["<think>", "</think>"]


class Pieces:
    """The tokens are given as strings: what a test wants them to be."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def __len__(self):
        return len(self.pieces)

    def encode(self, text, **options):
        raise NotImplementedError

    def decode(self, token_ids, **options):
        return "".join(self.pieces[i] for i in token_ids)


def byte_level(markers=True):
    """The bundled reasoner's byte-level BPE; without markers `<think>` is several tokens, and one of them may go on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if markers:
        return stepsal.load_tokenizer()
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    bare.train_from_iterator([*CORPUS, "<think>\n\n</think>\n"], trainer)
    return _wrapped(bare, markers)


def byte_fallback(markers=True):
    """As Llama 2's: a space before every text, BOS by default, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.printable[:95]]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "s"), ("▁", "is")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return _wrapped(tokenizer, markers, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(markers=True):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [(f"▁{word}", -3.0) for word in ("the", "we", "is", "answer", "Then")]
    pieces = [("<unk>", 0.0), ("▁", -5.0), ("\n", -4.0), *((c, -6.0) for c in string.printable[:94]), *words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrapped(tokenizer, markers, unk_token="<unk>")


def word_piece(markers=True):
    """As BERT's, and asked to tidy spaces: line breaks are lost."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    alphabet = list(string.ascii_letters + string.digits + string.punctuation)
    trainer = trainers.WordPieceTrainer(
        vocab_size=260, special_tokens=["[UNK]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer, markers, unk_token="[UNK]", clean_up_tokenization_spaces=True)


def characters(markers=True):
    """Slow, pure Python, no offsets: a token for each character."""
    from transformers import PreTrainedTokenizer

    class Characters(PreTrainedTokenizer):
        symbols = (*"\n", *map(chr, range(32, 127)), *"é数。🙂")

        @property
        def vocab_size(self):
            return len(self.symbols) + 1

        def get_vocab(self):
            return {self._convert_id_to_token(i): i for i in range(self.vocab_size)} | self.added_tokens_encoder

        def _tokenize(self, text, **options):
            return list(text)

        def _convert_token_to_id(self, token):
            return self.symbols.index(token) if token in self.symbols else len(self.symbols)

        def _convert_id_to_token(self, index):
            return self.symbols[index] if index < len(self.symbols) else "�"

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens)

    tokenizer = Characters()
    if markers:
        tokenizer.add_tokens(MARKERS)
    return tokenizer


def sentence_piece(markers=True):
    """Slow, a SentencePiece model: no offsets; it writes bytes as `<0x0A>` and drops a space that comes first."""
    import io
    import tempfile

    from sentencepiece import SentencePieceTrainer
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    model = io.BytesIO()
    texts = iter([*CORPUS, *CORPUS, *string.printable[:95]])
    options = {"byte_fallback": True, "add_dummy_prefix": False, "normalization_rule_name": "identity"}
    SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, model_type="bpe", vocab_size=390, minloglevel=9, **options
    )
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model.getvalue())
        file.flush()
        tokenizer = SentencePieceBackend(vocab_file=file.name, unk_token="<unk>")
    if markers:
        tokenizer.add_tokens(MARKERS)
    return tokenizer


def metaspace(markers=True):
    """As Mistral's and Gemma's SentencePiece BPE: spaces are part of words, none is put before the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *string.printable[:94]]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "s"), ("▁", "is"), ("\n", "\n"), ("▁", "▁")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrapped(tokenizer, markers, unk_token="<unk>")


def greedy_added(markers=True):
    """Added tokens that take the white space around them, and one that is matched in normalized text."""
    from tokenizers import AddedToken

    tokenizer = byte_level(markers=False)
    if markers:
        tokenizer.add_tokens([AddedToken(each, lstrip=True, rstrip=True) for each in MARKERS])
    tokenizer.add_tokens([AddedToken("Wait", single_word=True), AddedToken("So.", normalized=True)])
    return tokenizer


KINDS = {
    make.__name__: make
    for make in (byte_level, byte_fallback, unigram, word_piece, characters, metaspace, sentence_piece, greedy_added)
}


# --- families --------------------------------------------------------------------------------------------------------
def r1():
    """The bundled reasoner's: R1's special tokens, and a template that opens the thinking."""
    return _with_specials((), stepsal.load_tokenizer().chat_template, eos="<｜end▁of▁sentence｜>")


def qwen3():
    """ChatML. Earlier thinking is dropped, tool calls and their results are written, thinking may be switched off."""
    return _with_specials(("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"), _QWEN3, eos="<|im_end|>")


def magistral():
    """Thinking parts of a message's content; a BOS; no line breaks between messages."""
    return _with_specials(
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"), _MAGISTRAL
    )


def gpt_oss():
    """Harmony. A channel's name is ordinary text between special tokens."""
    names = ("start", "end", "message", "channel", "constrain", "return", "call")
    return _with_specials([f"<|{name}|>" for name in names], _HARMONY, eos="<|return|>")


MODELS = {make.__name__: cache(make) for make in (r1, qwen3, magistral, gpt_oss)}

_QWEN3 = """{%- set last = namespace(query=0) -%}
{%- for message in messages %}{% if message.role == "user" %}{% set last.query = loop.index0 %}{% endif %}{% endfor -%}
{%- if tools %}{{ "<|im_start|>system\n# Tools" }}{% for tool in tools %}{{ "\n" + tool | tojson }}{% endfor -%}
{{ "<|im_end|>\n" }}{% endif -%}
{%- for message in messages -%}
  {%- if message.role == "tool" %}{{ "<|im_start|>user\n<tool_response>\n" + message.content + "\n</tool_response>" }}
  {%- else -%}
    {{ "<|im_start|>" + message.role + "\n" }}
    {%- if message.role == "assistant" and loop.index0 > last.query and message.reasoning_content -%}
      {{ "<think>\n" + message.reasoning_content.strip("\n") + "\n</think>\n\n" }}
    {%- endif -%}
    {{ message.content or "" }}
    {%- for call in message.tool_calls or [] -%}
      {{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
      {{- "}\n</tool_call>" }}
    {%- endfor -%}
  {%- endif -%}
  {{ "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}
  {%- if enable_thinking is defined and not enable_thinking %}{{ "<think>\n\n</think>\n\n" }}{% endif -%}
{%- endif -%}"""

_MAGISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message.role == "user" %}{{ "[INST]" + message.content + "[/INST]" }}
{%- elif message.role == "system" %}{{ "[SYSTEM_PROMPT]" + message.content + "[/SYSTEM_PROMPT]" }}
{%- elif message.content is string %}{{ message.content + eos_token }}
{%- else %}{% for part in message.content %}
{%- if part.type == "thinking" %}{{ "[THINK]" + part.thinking + "[/THINK]" }}{% else %}{{ part.text }}{% endif -%}
{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"""

_HARMONY = """{{ "<|start|>system<|message|>Reasoning: " + (reasoning_effort or "medium") + "<|end|>" }}
{%- set answered = namespace(at=-1) -%}
{%- for message in messages -%}
  {%- if message.role == "assistant" and not message.tool_calls %}{% set answered.at = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}
    {%- if "<|channel|>" in (message.content or "") %}{{ raise_exception("pass analysis as thinking") }}{% endif -%}
    {%- if message.thinking and loop.index0 > answered.at -%}
      {{ "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
      {{ "<|start|>assistant to=functions." + call.function.name + "<|channel|>commentary json<|message|>" }}
      {{- call.function.arguments | tojson + "<|call|>" }}
    {%- endfor -%}
    {%- if message.content %}{{ "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}{% endif -%}
  {%- elif message.role == "tool" -%}
    {{ "<|start|>functions.tool to=assistant<|channel|>commentary<|message|>" + message.content + "<|end|>" }}
  {%- else %}{{ "<|start|>" + message.role + "<|message|>" + message.content + "<|end|>" }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|start|>assistant" }}{% endif -%}"""


def _with_specials(names, template, **roles):
    """The bundled byte-level BPE with a family's special tokens and chat template."""
    tokenizer = stepsal.load_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    for role, token in roles.items():
        setattr(tokenizer, f"{role}_token", token)
    tokenizer.chat_template = template
    return tokenizer


def _wrapped(tokenizer, markers, **options):
    from transformers import PreTrainedTokenizerFast

    options = {"clean_up_tokenization_spaces": False, **options}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    if markers:
        fast.add_tokens(MARKERS)
    return fast
