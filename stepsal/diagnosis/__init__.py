"""Diagnosis: what step maps say of Shallow Lock-in and Deep Decay, for one trace and for two groups of traces."""
