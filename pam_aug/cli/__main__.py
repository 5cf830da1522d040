"""`python -m pam_aug.cli`."""

from pam_aug.cli import main

if __name__ == "__main__":
    main()
