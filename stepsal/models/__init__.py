"""Language models: loading them, and the one place that knows TransformerLens and transformers."""


class _TemporaryHost:
    def __init__(self, model):
        from stepsal.models import host

        self.model, self._h = model, host
        self.shape = host.shape(model)

    def at_tokens(self, f):
        return self._h.at_tokens(f)

    def at_scores(self, l, f):
        return self._h.at_scores(l, f)

    def at_pattern(self, l, f):
        return self._h.at_pattern(l, f)

    def at_residual(self, l, f):
        return self._h.at_residual(l, f)

    def at_values(self, l, f):
        return self._h.at_values(self.model, l, f)

    def at_head_outputs(self, l, f):
        return self._h.at_head_outputs(self.model, l, f)

    def hooks(self, hs):
        return self._h.hooks(self.model, hs)

    def describe(self):
        return self._h.describe(self.model)

    def end_tokens(self):
        return self._h.end_tokens(self.model)

    def attention_kind(self, l):
        return self._h.attention_kind(self.model, l)


def host_of(model):
    return _TemporaryHost(model)
