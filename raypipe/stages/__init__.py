"""The stages: each reads files of the run, writes files of the run, and knows no other stage."""
