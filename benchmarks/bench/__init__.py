"""Speed of keyfilters beside what one would use instead, subject by subject, in one command."""
