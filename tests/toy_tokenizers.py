"""Small tokenizers of every common kind, made here. (Not named tokenizers.py: that would hide the package.)"""

import string

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


KINDS = {make.__name__: make for make in (byte_level, byte_fallback, unigram, word_piece, characters)}


def _wrapped(tokenizer, markers, **options):
    from transformers import PreTrainedTokenizerFast

    options = {"clean_up_tokenization_spaces": False, **options}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    if markers:
        fast.add_tokens(MARKERS)
    return fast
