"""For tests of drafters and backends: fakes and the conformance test."""
