from head2toe.cli import main

main()
