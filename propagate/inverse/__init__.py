"""The inverse problem: which value of a field meets stated conditions."""
