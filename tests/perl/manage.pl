#!/usr/bin/perl
# A management session as scripts on Net::Telnet make them, with every verb that
# Net::OpenVPN::Manage has.
#
#     manage.pl HOST PORT PASSWORD_FILE
#
# Each line of standard input is a turn: "gentle", which leaves the daemon as it was,
# or "harsh NAME", which kills that client and restarts the daemon. For every turn it
# connects, gives its password and, at the end, says `exit`; then it prints one line of
# JSON: [command, [line of the reply, ...]] in order. What was not asked for (lines that
# begin with ">") is left out. Anything unexpected ends it with an error.
use strict;
use warnings;

use JSON::PP;
use Net::Telnet;

use constant TIMEOUT_S => 20;

# What ends a reply; a line of text may well contain these words further on.
use constant REPLY_END => '/^(?:SUCCESS:|ERROR:|END$).*\n/m';

@ARGV == 3 or die "usage: manage.pl HOST PORT PASSWORD_FILE\n";
my ($host, $port, $password_file) = @ARGV;

# A low limit to `mute` would silence the log of everybody.
my @gentle = (
    'auth-retry', 'auth-retry interact', 'auth-retry', 'auth-retry none', 'auth-retry bogus',
    'echo all', 'echo on', 'echo off', 'echo 1', 'echo bogus',
    'help',
    'hold', 'hold on', 'hold', 'hold off', 'hold bogus',
    'kill nobody', 'kill 192.0.2.1:1', 'kill',
    'log 3', 'log on', 'log off', 'log bogus',
    'mute', 'mute 1000000', 'mute', 'mute 0',
    'net',
    'password "Auth" secret', 'password',
    'signal SIGUSR2', 'signal bogus',
    'state', 'state all', 'state 1', 'state on', 'state off',
    'status', 'status 1', 'status 2', 'status 3', 'status bogus',
    'username "Auth" somebody', 'username',
    'verb', 'verb 4', 'verb', 'verb 3',
    'version',
);

sub connected {
    open my $file, '<', $password_file or die "$password_file: $!\n";
    chomp(my $password = <$file>);
    my $telnet = Net::Telnet->new(
        Host => $host, Port => $port, Telnetmode => 0, Timeout => TIMEOUT_S, Errmode => 'die',
    );
    # Sent at once: the prompt only has to come.
    $telnet->cmd(String => $password, Prompt => '/ENTER PASSWORD:/');
    my $verdict = $telnet->getline;
    $verdict eq "SUCCESS: password is correct\n" or die "after the password: $verdict";
    my $greeting = $telnet->getline;
    $greeting =~ /^>INFO:OpenVPN Management Interface Version \d/ or die "greeted with: $greeting";
    return $telnet;
}

sub ask {
    my ($telnet, $command) = @_;
    # For no line at all `cmd` gives an empty one, without an end.
    my @lines = grep { length } $telnet->cmd(String => $command, Prompt => REPLY_END);
    push @lines, $telnet->last_prompt;
    chomp @lines;
    return grep { !/^>/ } @lines;
}

# The rows of `status 2` by their kind, each an array of its fields.
sub status_ref {
    my ($telnet) = @_;
    my %rows;
    for my $line (ask($telnet, 'status 2')) {
        my ($kind, @fields) = split /,/, $line, -1;
        push @{ $rows{$kind} }, \@fields;
    }
    return \%rows;
}

sub left {
    my ($telnet) = @_;
    $telnet->errmode('return');
    $telnet->print('exit');
    while (defined(my $line = $telnet->getline)) {
        $line =~ /^>/ or die "after exit: $line";
    }
    $telnet->eof or die 'after exit: ', $telnet->errmsg, "\n";
}

$| = 1;
while (my $turn = <STDIN>) {
    chomp $turn;
    my $telnet = connected();
    my @said;
    if ($turn eq 'gentle') {
        push @said, [$_, [ask($telnet, $_)]] for @gentle;
        my $rows = status_ref($telnet);
        for my $kind (qw(CLIENT_LIST ROUTING_TABLE)) {
            push @said, ['status_ref', [map { join ',', $kind, @$_ } @{ $rows->{$kind} }]];
        }
    } elsif (my ($name) = $turn =~ /^harsh (.+)/) {
        push @said, [$_, [ask($telnet, $_)]] for "kill $name", 'signal SIGUSR1';
    } else {
        die "no such turn: $turn\n";
    }
    left($telnet);
    print encode_json(\@said), "\n";
}
