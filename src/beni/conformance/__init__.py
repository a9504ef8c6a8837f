"""The conformance kit: what every stage must do, whoever wrote it (docs/add_a_part.md)."""
