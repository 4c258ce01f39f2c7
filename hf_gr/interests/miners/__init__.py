"""What finds interests: language models behind an endpoint or in the process, and keyphrases of the text itself."""
