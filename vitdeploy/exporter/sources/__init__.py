"""What can be exported: a name of the zoo, a module in memory, a program, or what timm and transformers know."""
